"""The documents tell the truth: tables equal the code, links lead somewhere.

`python tests/test_readme.py` writes the tables of jobs/README.md anew after a change of the fields.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import typer
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from support.runs.checkout import ROOT
from support.runs.documents import DOCUMENTS, MARKED

from pipeline.commands.app import app
from pipeline.core import errors, failures, schema
from pipeline.core.figures.counters import STAGES
from pipeline.core.registry import GATES, SOURCES, TASKS, built_in, load
from pipeline.job.job import Job
from pipeline.job.source import Source
from pipeline.report.metrics.families import MEANINGS
from pipeline.report.speed.limits import GROUPS
from pipeline.storage import skipped

README, JOB_FILE = DOCUMENTS["README.md"], DOCUMENTS["jobs/README.md"]
ARCHITECTURE, FAILURES = DOCUMENTS["pipeline/README.md"], DOCUMENTS["pipeline/runs/README.md"]
OUTPUT, COMMANDS = DOCUMENTS["pipeline/commit/README.md"], DOCUMENTS["pipeline/commands/README.md"]
REPORT, TESTING = DOCUMENTS["pipeline/report/README.md"], DOCUMENTS["tests/README.md"]
MAX_README_LINES, MAX_COLUMNS = 350, 100
SECTIONS = list(Job.model_fields)
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}
_SIGNS = ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"))
_LINK = re.compile(r"\]\(([^)]+)\)")


def field_tables(section: str) -> str:
    """The tables of a section as they must stand in jobs/README.md: its own, then nested ones."""
    return "\n\n".join(_tables(Job.model_fields[section].annotation, set()))


def format_matrix() -> str:
    """Which formats have which fields, as jobs/README.md must have it below `Formats`."""
    forms = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    fields_of: dict[str, list[str]] = {}
    for field in Source.model_fields:
        formats = ", ".join(name for name, form in forms.items() if field in form.fields)
        fields_of.setdefault(formats, []).append(f"`{field}`")
    fields_of.pop("", None)  # those that every format has
    lines = ["| formats | fields |", "|---|---|"]
    return "\n".join([*lines, *(f"| {of} | {', '.join(have)} |" for of, have in fields_of.items())])


def option_tables() -> dict[str, str]:
    """The table of the options of each format that has some, as it must be below its name."""
    forms = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    return {name: next(_tables(f.Options, set())) for name, f in forms.items() if f.Options}


def _tables(model: Any, shown: set[Any]) -> Iterator[str]:
    """Yield the table of a section, and those below it; what is in `shown` stands there already."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        name = field.alias or name
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {field_type(field)} | {field_default(field)} | {meaning} |")
    yield "\n".join(lines)
    for name, field in model.model_fields.items():
        # A section of its own, perhaps left out, or a list of sections.
        for nested in filter(is_section, flat(field.annotation)):
            is_list = get_origin(field.annotation) is tuple
            if nested in shown:
                continue
            shown.add(nested)
            alike = [n for n, f in model.model_fields.items() if f.annotation == field.annotation]
            names = " and ".join(f"`{other}`" for other in alike)
            about = f"Each of `{name}`:" if is_list else f"{names}: {meaning_of(nested)}"
            is_alike = all(f.description.startswith("As `") for f in nested.model_fields.values())
            if is_alike:
                about += f" As here it has {', '.join(f'`{n}`' for n in nested.model_fields)}."
            yield textwrap.fill(about, MAX_COLUMNS, break_long_words=False, break_on_hyphens=False)
            if not is_alike:
                yield from _tables(nested, shown)


def flat(annotation: Any) -> Iterator[Any]:
    """A type and those that it is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from flat(inner)


def meaning_of(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def field_type(field: FieldInfo) -> str:
    return describe(field.annotation) + limits(field.metadata)


def describe(annotation: Any) -> str:
    """Name a type in plain words, with its limits."""
    if is_section(annotation):
        return _WORDS[dict]
    if annotation in _WORDS:
        return _WORDS[annotation]
    arguments = [item for item in get_args(annotation) if item is not type(None)]
    match get_origin(annotation):
        case origin if origin in (UnionType, Union):
            return " or ".join(map(describe, arguments))
        case origin if origin is Literal:
            return " or ".join(f"`{choice}`" for choice in arguments)
        case origin if origin is tuple:
            of = describe(arguments[0])
            return f"list of {of}" if arguments[-1] is ... else f"{len(arguments)} {of}s"
        case origin if origin is dict:
            return _WORDS[dict]
    inner, *metadata = arguments  # Annotated
    bounds = [part for item in metadata for part in getattr(item, "metadata", [item])]
    return describe(inner) + limits(bounds)


def limits(constraints: Sequence[Any]) -> str:
    """Show the bounds of a number; lengths and patterns of texts are left to the meaning."""
    bounds = [
        f" {sign} {getattr(constraint, name):g}"
        for constraint in constraints
        for constraint_class, sign, name in _SIGNS
        if isinstance(constraint, constraint_class)
    ]
    return ",".join(bounds)


def field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "as below"
    return "-" if default is None else f"`{json.dumps(default)}`"


def table_below(document: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = document.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\n)+", text, re.MULTILINE)
    assert rows is not None, heading
    lines = rows.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_cells(document: str, heading: str) -> list[str]:
    return [row[0].strip("` ") for row in table_below(document, heading)]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tables_of_a_section_equal_the_model(section: str) -> None:
    below = JOB_FILE.split(f"\n### `{section}`", 1)[1].split("\n#", 1)[0]
    tables = field_tables(section)
    assert tables in below, f"jobs/README.md should have under {section}:\n{tables}"


def test_every_format_has_its_fields_and_options_in_a_table() -> None:
    below = JOB_FILE.split("\n## Formats\n", 1)[1].split("\n## ", 1)[0]
    assert format_matrix() in below, f"jobs/README.md should have under Formats:\n{format_matrix()}"
    for name in built_in(SOURCES):
        about = f"\n### {name}\n" if f"\n### {name}\n" in below else f"\n`{name}`: "
        assert about in below
    for name, table in option_tables().items():
        assert table in below.split(f"\n### {name}\n", 1)[1].split("\n#", 1)[0], table


def test_every_reason_is_in_the_table() -> None:
    assert first_cells(FAILURES, "## Reasons") == [reason.value for reason in failures.Reason]


def test_every_reason_to_skip_a_file_is_in_the_table() -> None:
    table_rows = {row[0].strip("`"): row[2] for row in table_below(FAILURES, "## Skipped files")}
    wanted = {
        skip.value: "no" if skip in skipped.EXPECTED else "yes" for skip in skipped.SkipReason
    }
    assert table_rows == wanted


def test_every_gate_is_in_the_table() -> None:
    assert first_cells(JOB_FILE, "## How gates judge") == list(built_in(GATES))


def test_every_exit_code_is_in_the_table() -> None:
    classes = [errors.PipelineError, *errors.PipelineError.__subclasses__()]
    codes = {"0": "-", **{str(cls.exit_code): f"`{cls.__name__}`" for cls in classes}}
    assert {row[0]: row[1] for row in table_below(README, "### Exit codes")} == codes


def test_every_task_is_in_the_table() -> None:
    assert first_cells(JOB_FILE, "## Tasks") == list(built_in(TASKS))


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


def test_every_folder_is_in_the_table() -> None:
    folders = [path.name for path in (ROOT / "pipeline").iterdir() if path.is_dir()]
    wanted = {f"{name}/" for name in folders if name != "__pycache__"}
    assert set(first_cells(ARCHITECTURE, "## Folders")) == wanted | {"dataflow.py"}


def test_every_file_that_the_architecture_says_to_open_exists() -> None:
    changes = table_below(ARCHITECTURE, "## Changes and the file to open")
    assert len(changes) >= 10
    for change, where in changes:
        named = [target.split("#")[0] for target in _LINK.findall(where)]
        assert named, change
        for path in named:
            assert (ROOT / "pipeline" / path).is_file(), f"{change}: {path}"


def test_how_to_add_names_every_registry() -> None:
    rows = table_below(ARCHITECTURE, "## How to add")
    packages = (ROOT / "pipeline").rglob("__init__.py")
    registries = [path for path in packages if "\nREGISTRY" in path.read_text()]
    wanted = {path.relative_to(ROOT / "pipeline").as_posix() for path in registries}
    assert {target for row in rows for target in _LINK.findall(row[3])} == wanted


def test_the_readme_is_one_sitting() -> None:
    lines = README.splitlines()
    assert len(lines) <= MAX_README_LINES
    assert [line for line in lines if len(line) > MAX_COLUMNS] == []


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


def with_new_tables(text: str) -> str:
    """Return jobs/README.md with the tables of the job file as they must be."""
    for section in SECTIONS:
        start = text.index("| field |", text.index(f"\n### `{section}`\n"))
        end = text.index("\n#", start)
        text = text[:start] + field_tables(section) + "\n" + text[end:]
    text = _with_table(text, "\n## Formats\n", format_matrix(), "| formats |")
    for name, table in option_tables().items():
        text = _with_table(text, f"\n### {name}\n", table)
    return text


def _with_table(text: str, heading: str, table: str, head: str = "| field |") -> str:
    start = text.index(head, text.index(heading))
    return text[:start] + table + text[text.index("\n\n", start) :]


if __name__ == "__main__":
    (ROOT / "jobs" / "README.md").write_text(with_new_tables(JOB_FILE), "ascii")
