"""The README tells the truth: tables equal the code, its folders are all, commands run.

`python tests/test_readme.py` writes the job file's tables anew after a change of pipeline/job.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import typer
from annotated_types import Ge, Gt, Le
from checkout import ROOT
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.commands.app import app
from pipeline.commands.demo_photos import build_images
from pipeline.core import errors, schema, skipped
from pipeline.core.counters import STAGES
from pipeline.gates.verdicts import GATES
from pipeline.job.job import Job
from pipeline.models.tasks import REGISTRY as TASKS
from pipeline.report.limits import GROUPS

README = (ROOT / "README.md").read_text("ascii")
SECTIONS = list(Job.model_fields)
NUM_ROWS, NUM_BAD = 24, 2
_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", dict: "mapping"}
_SIGNS = ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"))
_MARKED = re.compile(r"<!-- test -->\n```(sh|python)\n(.*?)```", re.DOTALL)


def field_tables(section: str) -> str:
    """The tables of a section as they must stand in the README: its own, then nested ones."""
    return "\n\n".join(_tables(Job.model_fields[section].annotation))


def _tables(model: Any) -> Iterator[str]:
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{name}` | {field_type(field)} | {field_default(field)} | {meaning} |")
    yield "\n".join(lines)
    shown: set[Any] = set()
    for name, field in model.model_fields.items():
        # A section of its own, perhaps left out, or a list of sections.
        for nested in filter(is_section, [field.annotation, *get_args(field.annotation)]):
            is_list = get_origin(field.annotation) is tuple
            if nested in shown:
                continue
            shown.add(nested)
            alike = [n for n, f in model.model_fields.items() if f.annotation == field.annotation]
            names = " and ".join(f"`{other}`" for other in alike)
            yield f"Each of `{name}`:" if is_list else f"{names}: {meaning_of(nested)}"
            yield from _tables(nested)


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
        for kind, sign, name in _SIGNS
        if isinstance(constraint, kind)
    ]
    return ",".join(bounds)


def field_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "as below"
    return "-" if default is None else f"`{json.dumps(default)}`"


def table_below(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = README.split(f"\n{heading}\n", 1)[1]
    rows = re.search(r"(^\|.*\n)+", text, re.MULTILINE)
    assert rows is not None, heading
    lines = rows.group(0).splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def first_cells(heading: str) -> list[str]:
    return [row[0].strip("` ") for row in table_below(heading)]


@pytest.mark.parametrize("section", SECTIONS)
def test_the_tables_of_a_section_equal_the_model(section: str) -> None:
    below = README.split(f"\n### `{section}`", 1)[1].split("\n#", 1)[0]
    tables = field_tables(section)
    assert tables in below, f"the README should have under {section}:\n{tables}"


def test_every_reason_is_in_the_table() -> None:
    assert first_cells("### Reasons") == [reason.value for reason in schema.Reason]


def test_every_reason_to_skip_a_file_is_in_the_table() -> None:
    found = {row[0].strip("`"): row[2] for row in table_below("### Skipped files")}
    wanted = {skip.value: "no" if skip in skipped.EXPECTED else "yes" for skip in skipped.Skip}
    assert found == wanted


def test_every_gate_is_in_the_table() -> None:
    assert first_cells("### Gates") == list(GATES)


def test_every_exit_code_is_in_the_table() -> None:
    kinds = [errors.PipelineError, *errors.PipelineError.__subclasses__()]
    codes = {"0": "-", **{str(kind.exit_code): f"`{kind.__name__}`" for kind in kinds}}
    assert {row[0]: row[1] for row in table_below("### Exit codes")} == codes


def test_every_task_is_in_the_table() -> None:
    assert first_cells("### Tasks") == list(TASKS)


def test_every_stage_is_in_the_table() -> None:
    group_of = {stage: group for group, stages in GROUPS.items() for stage in stages}
    found = {row[0].strip("`"): row[1] for row in table_below("## Read the report")}
    assert found == {stage: group_of.get(stage, "-") for stage in STAGES}


@pytest.mark.parametrize(
    ("heading", "fields"),
    [
        ("### Columns of predictions", schema.prediction_schema([])),
        ("### Columns of quarantine", schema.QUARANTINE_SCHEMA),
    ],
)
def test_every_column_is_in_the_table(heading: str, fields: Any) -> None:
    found = [(row[0].strip("`"), row[1].strip("`")) for row in table_below(heading)]
    assert found == [(field.name, str(field.type)) for field in fields]


def test_every_command_and_option_is_named() -> None:
    group: Any = typer.main.get_command(app)
    assert sorted(first_cells("## Commands")) == sorted(group.commands)
    options = {
        name
        for command in group.commands.values()
        for option in command.params
        for name in option.opts
        if name.startswith("--")
    }
    assert {name for name in options if f"`{name}" not in README} == set()


def test_every_make_target_is_named() -> None:
    targets = re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {name for name in targets if f"make {name}" not in README} == set()


def test_every_folder_is_in_the_table() -> None:
    listed = first_cells("## Files")
    folders = [path for path in (ROOT / "pipeline").iterdir() if path.is_dir()]
    wanted = {f"pipeline/{path.name}/" for path in folders if path.name != "__pycache__"}
    assert set(listed) == wanted | {"pipeline/run.py", "jobs/", "examples/", "tests/"}


def test_every_link_leads_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "examples" / "README.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_marked_commands_run_in_order(tmp_path: Path) -> None:
    """One folder for all of them, as a reader has it after the demo."""
    for folder in ("jobs", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    build_images(tmp_path / "demo-output" / "input" / "images", NUM_ROWS, seed=6, num_bad=NUM_BAD)
    blocks = _MARKED.findall(README)
    assert len(blocks) >= 3
    scripts = Path(sys.executable).parent
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
    env["PATH"] = f"{scripts}{os.pathsep}{env['PATH']}"
    for language, text in blocks:
        command = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            command if language == "sh" else [sys.executable, "-c", text],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"


def with_new_tables(text: str) -> str:
    """Return the README with the tables of the job file as they must be."""
    for section in SECTIONS:
        start = text.index("| field |", text.index(f"\n### `{section}`\n"))
        end = text.index("\n#", start)
        text = text[:start] + field_tables(section) + "\n" + text[end:]
    return text


if __name__ == "__main__":
    (ROOT / "README.md").write_text(with_new_tables(README), "ascii")
