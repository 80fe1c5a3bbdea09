"""Documents are true: tables equal the code, links lead somewhere, pages are short."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest
import typer
from support.runs.checkout import ROOT
from support.runs.documents import DOCUMENTS, MARKED
from support.runs.reference import reference

from pipeline.commands.app import app
from pipeline.core import errors, failures, schema
from pipeline.core.figures import STAGES
from pipeline.core.registry import GATES, TASKS, built_in
from pipeline.report.metric_families import MEANINGS
from pipeline.report.sections.limits import GROUPS
from pipeline.storage import skipped

README, JOB_FILE = DOCUMENTS["README.md"], DOCUMENTS["jobs/README.md"]
ARCHITECTURE, FAILURES = DOCUMENTS["pipeline/README.md"], DOCUMENTS["pipeline/runs/README.md"]
OUTPUT, COMMANDS = DOCUMENTS["pipeline/commit/README.md"], DOCUMENTS["pipeline/commands/README.md"]
REPORT, TESTING = DOCUMENTS["pipeline/report/README.md"], DOCUMENTS["tests/README.md"]
MAX_LINES = {"README.md": 220, "jobs/README.md": 350, "pipeline/README.md": 180}
MAX_COLUMNS = 100
_LINK = re.compile(r"\]\(([^)]+)\)")


def table_below(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = document.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\n)+", text, re.MULTILINE)
    assert rows is not None, heading
    lines = rows.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_cells(document: str, heading: str) -> list[str]:
    return [row[0].strip("` ") for row in table_below(document, heading)]


def test_the_reference_of_the_job_file_is_that_of_its_schema() -> None:
    assert DOCUMENTS["jobs/reference.md"] == reference(), "run: make reference"


def test_every_reason_is_in_the_table() -> None:
    assert first_cells(FAILURES, "## Reasons") == [reason.value for reason in failures.Reason]


def test_every_reason_to_skip_a_file_is_in_the_table() -> None:
    table_rows = {row[0].strip("`"): row[2] for row in table_below(FAILURES, "## Skipped files")}
    wanted = {
        skip.value: "no" if skip in skipped.EXPECTED else "yes" for skip in skipped.SkipReason
    }
    assert table_rows == wanted


def test_every_gate_is_in_the_table() -> None:
    assert first_cells(JOB_FILE, "## Gates") == list(built_in(GATES))


def test_every_exit_code_is_in_the_table() -> None:
    classes = [errors.PipelineError, *errors.PipelineError.__subclasses__()]
    codes = {"0": "-", **{str(cls.exit_code): f"`{cls.__name__}`" for cls in classes}}
    assert {row[0]: row[1] for row in table_below(README, "## Exit codes")} == codes


def test_every_task_is_in_the_table() -> None:
    assert first_cells(JOB_FILE, "### Tasks") == list(built_in(TASKS))


def test_every_stage_is_in_the_table() -> None:
    group_of = {stage: group for group, stages in GROUPS.items() for stage in stages}
    group_in_table = {row[0].strip("`"): row[1] for row in table_below(REPORT, "## Stages")}
    assert group_in_table == {stage: group_of.get(stage, "-") for stage in STAGES}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("## Columns of predictions", schema.prediction_schema([], schema.CLASSIFY_FIELDS)),
        ("## Columns of quarantine", schema.QUARANTINE_SCHEMA),
    ],
)
def test_every_column_is_in_the_table(heading: str, fields: Any) -> None:
    columns = [(row[0].strip("`"), row[1].strip("`")) for row in table_below(OUTPUT, heading)]
    assert columns == [(field.name, str(field.type)) for field in fields]


def test_every_metric_is_in_the_table() -> None:
    rows = table_below(REPORT, "## Metrics")
    names = [row[0].strip("`").removeprefix("pipeline_").removesuffix("_total") for row in rows]
    assert dict(zip(names, (row[2] for row in rows), strict=True)) == MEANINGS


def test_every_command_and_option_is_named() -> None:
    group: Any = typer.main.get_command(app)
    assert sorted(first_cells(COMMANDS, "## All commands")) == sorted(group.commands)
    options = {
        name
        for command in group.commands.values()
        for option in command.params
        for name in option.opts
        if name.startswith("--")
    }
    assert {name for name in options if f"`{name}" not in COMMANDS} == set()


def test_every_make_target_is_named() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for name in targets if f"`make {name}" not in TESTING} == set()


@pytest.mark.parametrize("name", ["Makefile", "pyproject.toml", ".ci/run"])
def test_every_path_in_a_file_of_settings_exists(name: str) -> None:
    paths = re.findall(
        r"(?<![\w/.-])(?:tests|pipeline|examples|jobs)/[\w/.*-]+", (ROOT / name).read_text()
    )
    assert [path for path in paths if not [*ROOT.glob(path.rstrip("."))]] == []


def test_every_folder_is_in_the_table() -> None:
    folders = [path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir()]
    wanted = {f"{name}/" for name in folders if name != "__pycache__"}
    assert set(first_cells(ARCHITECTURE, "## Folders")) == wanted | {"dataflow.py"}


def test_every_file_to_open_for_a_change_exists() -> None:
    changes = table_below(ARCHITECTURE, "## Changes and the file to open")
    assert len(changes) >= 10
    for change, where in changes:
        named = [target.split("#")[0] for target in _LINK.findall(where)]
        assert named, change
        for path in named:
            assert (ROOT / "pipeline" / path).is_file(), f"{change}: {path}"


def test_every_function_of_the_walks_exists() -> None:
    steps = re.findall(r"\]\(([\w/]+\.py)\) `([\w.]+)`", ARCHITECTURE)
    assert len(steps) >= 50
    for path, name in steps:
        scope: list[ast.stmt] = ast.parse((ROOT / "pipeline" / path).read_text()).body
        for part in name.split("."):
            named = (ast.FunctionDef, ast.ClassDef)
            nodes = [node for node in scope if isinstance(node, named) and node.name == part]
            assert nodes, f"pipeline/README.md names {name} of {path}"
            scope = nodes[0].body


def test_how_to_add_names_every_registry() -> None:
    rows = table_below(ARCHITECTURE, "## How to add")
    packages = (ROOT / "pipeline").rglob("__init__.py")
    registries = [path for path in packages if "\nREGISTRY" in path.read_text()]
    wanted = {path.relative_to(ROOT / "pipeline").as_posix() for path in registries}
    assert {target for row in rows for target in _LINK.findall(row[3])} == wanted


@pytest.mark.parametrize("name", MAX_LINES)
def test_a_document_is_one_sitting(name: str) -> None:
    assert len(DOCUMENTS[name].splitlines()) <= MAX_LINES[name]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_prose_fits_a_terminal(name: str) -> None:
    lines = [line for line in DOCUMENTS[name].splitlines() if not line.startswith("|")]
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file_and_to_a_heading_that_is_there(name: str) -> None:
    for target in _LINK.findall(DOCUMENTS[name]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{name}: {target}"


def anchors(document: str) -> set[str]:
    """What a link can name behind `#`: the headings, spelt as GitHub does."""
    headings = re.findall(r"^#+ (.*)$", document, re.MULTILINE)
    return {re.sub(r"[^a-z0-9 _-]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_named_in_the_readme() -> None:
    assert {name for name in DOCUMENTS if f"]({name}" not in README} == {"README.md"}


def test_the_jobs_of_the_readme_have_at_most_ten_lines() -> None:
    jobs = {mark: text for mark, _, text in MARKED.findall(README) if mark.endswith(".yaml")}
    assert sorted(jobs) == ["file: churn.yaml", "file: photos.yaml", "file: texts.yaml"]
    assert max(len(text.splitlines()) for text in jobs.values()) <= 10
