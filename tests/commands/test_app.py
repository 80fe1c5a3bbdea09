"""The command line: it starts fast, and every mistake is one line with an exit code."""

from __future__ import annotations

import datetime as dt
import gc
import inspect
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from decimal import Decimal
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from support.runs.cli import pipeline
from support.runs.published import DAY, publish_rows
from typer.main import get_command

from pipeline.commands.app import app
from pipeline.commands.main import _guard
from pipeline.commands.operation import operation_of, show
from pipeline.core import errors
from pipeline.job.job import Job
from pipeline.storage.store import Store

HEAVY = ["torch", "torchvision", "ray", "pandas", "pyarrow", "numpy", "fsspec", "s3fs", "PIL"]
# Asking for help must cost nothing: a shell completes and a scheduler checks with it.
HELP_OF_ALL = """
import contextlib, io, sys
from pipeline.commands.app import app
from typer.main import get_command
for arguments in ([], *([name] for name in get_command(app).commands)):
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        app([*arguments, "--help"], standalone_mode=False)
    assert "Usage" in shown.getvalue()
print(*sorted(sys.modules))
"""
COMMANDS: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]


Refusal = Callable[..., str]


@pytest.fixture
def refusal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refusal:
    """Run a command, in this process, that must be refused as wrong; return its one line."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("PIPELINE_DEBUG", raising=False)

    def run(*arguments: str) -> str:
        gc.collect()  # what earlier tests left may say that it is unclosed
        capfd.readouterr()
        assert _guard(partial(app, list(arguments))) == 2
        shown = capfd.readouterr()
        assert shown.out == ""
        lines = shown.err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def test_help_imports_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-c", HELP_OF_ALL], capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert "pipeline.commands.app" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_every_command_and_every_option_has_a_help_text():
    assert {"run", "plan", "report", "inspect", "verify", "rollback", "gc", "schema"} <= set(
        COMMANDS
    )
    for name, command in COMMANDS.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.help, f"{name} {parameter.name}"


def test_a_command_has_the_arguments_of_its_operation():
    of_commands = {"as_json", "quiet", "log_format", "ok_exit"}
    checked = 0
    for command in COMMANDS.values():
        if vars(command.callback).get("is_signature"):
            taken = {parameter.name for parameter in command.params} - of_commands
            arguments = inspect.signature(operation_of(command.callback)).parameters
            assert taken <= {*arguments}, command.name
            checked += 1
    assert checked == 17


def test_an_option_has_the_same_help_in_every_command():
    seen: dict[str, str] = {}
    for command in COMMANDS.values():
        for parameter in command.params:
            for option in parameter.opts:
                # submit has the address of a job API, rollback goes to a version, and attach
                # follows a job of a date
                if option.startswith("--") and option not in ("--address", "--to", "--date"):
                    assert seen.setdefault(option, parameter.help) == parameter.help


@pytest.mark.no_ray
def test_help_lists_all_commands_by_group():
    bare, asked = pipeline(), pipeline("--help")
    assert (bare.code, bare.stdout.strip()) == (0, asked.stdout.strip())
    lines = asked.stdout.split("First steps:\n")[1].splitlines()
    groups = [line for line in lines if line and not line.startswith(" ")]
    assert groups == ["Runs:", "Partitions:", "Clusters:", "Outputs:", "Models:"]
    shown = dict(line.split(maxsplit=1) for line in lines if line.startswith("  "))
    assert shown == {name: command.help.split("\n\n")[0] for name, command in COMMANDS.items()}


@pytest.mark.no_ray
def test_version_imports_nothing_heavy():
    program = (
        "import sys; from pipeline.commands.app import app\n"
        "app(['--version'], standalone_mode=False)\n"
        "print(*sorted(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    first, loaded = done.stdout.splitlines()
    assert first.startswith(f"pipeline {metadata.version('batch-inference-pipeline')} (python 3.")
    assert f"ray {metadata.version('ray')}, torch {metadata.version('torch')}" in first
    assert set(loaded.split()).isdisjoint(HEAVY)
    assert pipeline("--version").stdout == f"{first}\n"


@pytest.mark.parametrize("command", ["inspect", "verify", "report"])
def test_a_job_file_in_place_of_an_output_is_refused_with_the_output(
    command: str, tmp_path: Path, refusal: Refusal
):
    job = tmp_path / "w.yaml"
    job.write_text("sink: {uri: out/\u00e4}\n")
    assert refusal(command, str(job)) == (
        f"error: {job} is a job file; its output is out/\u00e4: pipeline {command} out/\u00e4"
    )
    job.write_text("sink: 3\n")
    assert refusal(command, str(job)) == f"error: {job} is a job file; give its sink.uri"


@pytest.mark.no_ray
def test_quiet_verify_prints_nothing(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    publish_rows(store)
    done = pipeline("verify", store.uri, "--partition", DAY, "--quiet")
    assert (done.code, done.stdout, done.stderr) == (0, "", "")
    assert (
        pipeline("verify", store.uri, "--partition", DAY, "--quiet", "--json").json["partition"]
        == DAY
    )
    assert pipeline("verify", store.uri, "--partition", "date=2000-01-01", "--quiet").code == 2


@pytest.mark.no_ray
def test_all_errors_of_a_job_file_are_printed_and_in_the_document(tmp_path: Path):
    path = tmp_path / "job.yaml"
    path.write_text('source: {uri: in, format: "a\\e[31m"}\nmodel: {nme: x}\nsink: {uri: out}\n')
    done = pipeline("plan", str(path), "--json")
    assert done.code == done.json["exit_code"] == 2
    head, *lines = done.stderr.splitlines()
    assert head == f"error: {path}: 2 errors"
    assert done.json["error"] == f"{path}: 2 errors"
    assert [f"  {line}" for line in done.json["errors"]] == lines
    assert [line.split(":")[0] for line in lines] == ["  line 1", "  line 2"]
    assert "\x1b" not in done.stderr


def write(folder: Path, model: str = "{name: x}") -> Path:
    path = folder / "job.yaml"
    path.write_text(f"source: {{uri: in, format: images}}\nmodel: {model}\nsink: {{uri: out}}\n")
    return path


@pytest.mark.parametrize("target", ["nets:net", "package.nets:net"])
def test_code_beside_the_job_file_is_named_and_not_run(
    target: str, refusal: Refusal, tmp_path: Path
):
    (tmp_path / "package").mkdir()
    for file in ("nets.py", "package/__init__.py", "package/nets.py"):
        (tmp_path / file).write_text("raise SystemExit('it ran')")
    job = write(tmp_path, f"{{factory: '{target}', labels: [a]}}")
    name = target.partition(":")[0].split(".")[0]
    line = refusal("plan", str(job), "--allow-import", name)
    assert f"model.factory = {target!r}: {name}" in line
    assert "is beside the job file, which is not on the import path" in line
    assert f"PYTHONPATH={tmp_path} pipeline ... --allow-import {name}" in line


@pytest.mark.no_ray
def test_code_beside_the_job_file_is_found_by_pythonpath(tmp_path: Path):
    (tmp_path / "nets.py").write_text("raise RuntimeError('it ran')")
    job = write(tmp_path, "{factory: 'nets:net', labels: [a]}")
    env = {"PYTHONPATH": str(tmp_path)}
    assert "importing nets is not allowed" in pipeline("plan", str(job), env=env).stderr
    assert "it ran" in pipeline("plan", str(job), "--allow-import", "nets", env=env).stderr


@pytest.mark.no_ray
def test_schema_prints_json():
    done = pipeline("schema")
    assert (done.code, done.stderr) == (0, "")
    assert json.loads(done.stdout) == Job.model_json_schema()
    assert json.loads(pipeline("schema", "report").stdout)["type"] == "object"


TWICE, DATE = "is given 2 times; give it once", "write YYYY-MM-DD, or YYYY-MM-DDTHH for an hour"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("run j.yaml --date 2026-11-24 --date 2026-11-25", f"--date {TWICE}"),
        ("run j.yaml --date=2026-11-24 --quiet --date=2026-11-24", f"--date {TWICE}"),
        ("submit --address http://a j.yaml --address=http://b", f"--address {TWICE}"),
        ("rollback j.yaml --to 1 --to 2", f"--to {TWICE}"),
        ("inspect out --partition a=1 --partition a=2", f"--partition {TWICE}"),
        # Flags and lists may be given twice.
        ("run none.yaml --quiet --quiet --set a=1 --set b=2 --allow-import=a --allow-import=b",
         "none.yaml: cannot read the job file"),
        ("inspekt out", "No such command 'inspekt'. Did you mean 'inspect'?"),
        ("run j.yaml --dry-run",
         "No such option: --dry-run; pipeline plan JOB shows what a run would do"),
        ("plan none.yaml --date yesterday", f"date yesterday: {DATE}"),
        ("plan none.yaml --date 2026-1-1", f"date 2026-1-1: {DATE}"),
        ("plan none.yaml --date 24.11.2026", f"date 24.11.2026: {DATE}"),
        ("plan none.yaml --date ''", f"date : {DATE}"),
        ("no-such-command", "No such command 'no-such-command'"),
        ("run job.yaml --no-such-option", "No such option: --no-such-option"),
        ("--no-such-option", "No such option: --no-such-option"),
        ("run", "Missing argument 'JOB'"),
        ("run a.yaml b.yaml", "unexpected extra argument"),
        ("run a.yaml --set", "'--set' requires an argument"),
        ("rollback a.yaml --to x", "Invalid value for '--to'"),
        ("verify out --storage-options {", "--storage-options: write one JSON object"),
        ("verify out --storage-options [1]", "--storage-options: write one JSON object"),
        ("run none.yaml --accept conservation=x", "none.yaml: cannot read"),
        ("golden none.yaml", "Missing option '--out'"),
        ("rollback j.yaml --partition a=1", "a job selects its partition by --date"),
        ("status out --prometheus --json", "give --prometheus or --json, not both"),
        ("status ID --address http://h:8265 --prometheus --from 2026-12-01 --set a.b=1",
         "--from, --set, --prometheus: not for submitted jobs"),
        ("stop ID --address http://h:8265 --partition date=1999-01-01",
         "--partition: not for submitted jobs"),
        ("attach x --address ftp://x", "not an HTTP address; write the address of its job API"),
        ("run 'two\nlines.yaml'", "two lines.yaml: cannot read the job file"),
        ("schema nope", "schema nope: write job or report"),
    ],
)  # fmt: skip
def test_a_wrong_command_prints_one_line_and_exits_2(command: str, words: str, refusal: Refusal):
    assert words in refusal(*shlex.split(command))


@pytest.mark.no_ray
def test_the_process_of_a_wrong_command_exits_with_2():
    done = pipeline("run", "job.yaml", "--no-such-option")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == "error: No such option: --no-such-option\n"


def test_any_values_are_encoded_as_json(capsys: pytest.CaptureFixture[str]):
    time = dt.datetime(2026, 11, 24, 6, 30, tzinfo=dt.UTC)
    values = {"time": time, "sum": Decimal("1.10"), "bytes": b"abc", "few": (1, float("nan"))}
    show({"rows": [values, {"inf": -float("inf"), "none": None, "true": True}]}, as_json=True)
    assert json.loads(capsys.readouterr().out) == {
        "rows": [
            {"time": str(time), "sum": "1.10", "bytes": "3 bytes", "few": [1, "nan"]},
            {"inf": "-inf", "none": None, "true": True},
        ]
    }


def test_a_wrong_job_prints_one_line_without_credentials(refusal: Refusal, tmp_path: Path):
    path = write(tmp_path)
    line = refusal("run", str(path), "--set", "model.batch_size=many")
    assert f"{path}: --set: model.batch_size = 'many': Input should be a valid integer" in line
    line = refusal("run", str(path), "--set", "sink.storage_options=hunter2")
    assert "sink.storage_options" in line
    assert "hunter2" not in line


def test_accepting_a_gate_needs_its_name_and_a_reason(refusal: Refusal, tmp_path: Path):
    path = write(tmp_path)
    for command in (["run", str(path)], ["submit", str(path), "--address", "http://127.0.0.1:1"]):
        line = refusal(*command, "--accept", "conservation=lost a few")
        assert line.endswith("rows that are not accounted for cannot be accepted")
        assert "no such gate; there are not_empty" in refusal(*command, "--accept", "colour=red")
        assert "write volume=REASON" in refusal(*command, "--accept", "volume= ")
    line = refusal("run", str(path), "--address", "http://head:8265")
    assert "write HOST:PORT of the cluster's head" in line
    line = refusal("run", str(path), "--set", "source.options.tabel=x")
    assert "--set: source: options has no effect" in line
    (tmp_path / "_control").mkdir()
    assert "is an output; give the job file" in refusal("rollback", str(tmp_path))


@pytest.mark.parametrize("error", [errors.PipelineError, *errors.PipelineError.__subclasses__()])
def test_an_error_exits_with_its_code(
    error: type[errors.PipelineError], capsys: pytest.CaptureFixture[str]
):
    def fail(**_: object) -> int:
        raise error("what\nhappened\x1b[31m")

    assert _guard(fail) == error.exit_code
    assert capsys.readouterr() == ("", "error: what happened\\x1b[31m\n")


def test_an_unexpected_error_is_named_and_exits_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fail(**_: object) -> int:
        raise ZeroDivisionError("division by zero")

    monkeypatch.delenv("PIPELINE_DEBUG", raising=False)
    assert _guard(fail) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(
        r"error: ZeroDivisionError: division by zero \(test_app.py line \d+\)\n", err
    )


@pytest.mark.no_ray
def test_debug_adds_the_traceback(tmp_path: Path):
    done = pipeline("--debug", "run", str(tmp_path / "none.yaml"))
    assert done.code == 2
    assert "Traceback (most recent call last)" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (3, 3)])
def test_a_command_keeps_its_exit_code(returned: int | None, code: int):
    assert _guard(lambda **_: returned) == code
