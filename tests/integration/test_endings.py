"""A command ends in one line and a documented exit code, and with --json in one document."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import signal
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from support.inputs.photos import build_images
from support.runs.cli import environment, pipeline, write_job
from support.runs.published import publish_rows
from support.runs.selection import quick_cases
from typer.main import get_command

from pipeline.commands.app import app
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import Interrupted
from pipeline.dataflow import run_job
from pipeline.job.reading.loader import read_job
from pipeline.process.interrupts import defer_stops, reason
from pipeline.runs.context import RunOptions
from pipeline.runs.progress import Silent
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

DATE = "2026-11-24"
COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def document(stdout: str) -> Any:
    """The one document that stdout is to hold."""
    (line,) = stdout.splitlines()
    return json.loads(line)


SIGNALS = ("term", "int", "hup", "quit")


@pytest.mark.parametrize(
    "pairs",
    [
        [*zip(("run", "backfill", "inspect", "schema"), SIGNALS, strict=True)],
        pytest.param([*product(COMMANDS, SIGNALS)], marks=pytest.mark.slow),
    ],
    ids=["each signal", "all"],
)
def test_a_signal_ends_a_command_with_6_one_line_and_a_document(
    pairs: list[tuple[str, str]],
) -> None:
    for name, sent in pairs:
        done = pipeline(name, "--json", env={"PIPELINE_FAILPOINT": f"command:{sent}"})
        line = f"SIG{sent.upper()} received; run again to continue"
        assert (done.code, done.stderr) == (6, f"error: {line}\n"), name
        expected = {"status": "error", "exit_code": 6, "error": line, "report": None}
        assert document(done.stdout) == expected, name


AT_IMPORT = """
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

module = sys.argv.pop(1)
assert module not in sys.modules, "too late"
sys.meta_path.insert(0, Interrupts())
from pipeline.commands.main import main
main()
"""


@pytest.mark.parametrize(
    ("command", "module"),
    quick_cases(
        [
            ("plan", "typer"),
            ("plan", "pydantic"),
            ("run", "pydantic.main"),
            ("inspect", "pyarrow"),
            ("doctor", "psutil"),
        ],
        lambda command, module: module in ("typer", "pydantic.main"),
    ),
)
def test_a_signal_during_imports_ends_the_command(
    command: str, module: str, tmp_path: Path
) -> None:
    named = str(tmp_path) if command == "inspect" else job_over(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", AT_IMPORT, module, command, named, "--json"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, document(done.stdout)["exit_code"]) == (6, 6), done
    assert done.stderr == "error: SIGTERM received; run again to continue\n"


def job_over(folder: Path) -> str:
    """A job over a few photos."""
    build_images(folder / "images", 8, seed=3, num_bad=0)
    source = {"uri": str(folder / "images"), "format": "images"}
    return write_job(folder / "job.yaml", source, str(folder / "out"))


def reports(folder: Path) -> list[dict[str, Any]]:
    paths = sorted(folder.glob("out/reports/**/report.json"))
    return [json.loads(path.read_text()) for path in paths]


def lease_is_free(folder: Path) -> bool:
    beats = sorted(folder.glob("out/_control/**/*.hb"))
    return bool(json.loads(beats[-1].read_text())["released"])


def test_a_run_that_is_stopped_or_fails_before_ray_starts_leaves_a_report_and_no_lease(
    tmp_path: Path,
) -> None:
    ways = {
        "leased:term": (6, "stopped", "SIGTERM received"),
        "leased:raise": (1, "failed", "RuntimeError: failpoint leased"),
    }
    for way, (code, status, words) in ways.items():
        folder = tmp_path / way.replace(":", "-")
        run = ("run", job_over(folder), "--date", DATE, "--json")
        done = pipeline(*run, env={"PIPELINE_FAILPOINT": way})
        assert done.code == code, done
        assert words in document(done.stdout)["error"]
        (report,) = reports(folder)
        assert (report["status"], report["exit_code"]) == (status, code)
        assert words in report["error"]
        assert lease_is_free(folder)


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (RuntimeError("two\nlines"), "failed", 1, "RuntimeError: two lines"),
        (SystemExit(3), "failed", 1, "SystemExit"),
        (KeyboardInterrupt(), "stopped", 6, "interrupted"),
    ],
)
def test_a_run_stores_its_report_and_frees_its_lease_however_it_ends(
    error: BaseException,
    status: str,
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = read_job(job_over(tmp_path), date=dt.date(2026, 11, 24))

    def fail(run: Any, progress: Any) -> Any:
        with hold_lease(run.store, run.layout, run.record.run_id, 60.0):
            raise error

    monkeypatch.setattr("pipeline.dataflow._execute", fail)
    with pytest.raises(type(error)):
        run_job(job, RunOptions(), Silent())
    (report,) = reports(tmp_path)
    assert (report["status"], report["exit_code"]) == (status, code)
    assert words in report["error"]
    with hold_lease(Store(job.sink.uri), Layout(job.sink.partition), "another", 60.0):
        pass


@pytest.mark.parametrize("comes", ["while rows are predicted", "while it is published"])
def test_ctrl_c_in_a_program_ends_its_run_like_a_signal(
    comes: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = read_job(job_over(tmp_path), date=dt.date(2026, 11, 24))
    is_deferred = comes == "while it is published"

    def press(run: Any, progress: Any) -> Any:
        with hold_lease(run.store, run.layout, run.record.run_id, 60.0):
            with defer_stops() if is_deferred else contextlib.nullcontext():
                signal.raise_signal(signal.SIGINT)
            return "published"

    monkeypatch.setattr("pipeline.dataflow._execute", press)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(Interrupted) as caught:
            run_job(job, RunOptions(), Silent())
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not isinstance(caught.value, Exception)
    assert caught.value.exit_code == 6
    assert reason() is None, "the next run of the program is not stopped by it"
    (report,) = reports(tmp_path)
    if not is_deferred:
        assert "finished slices are kept, run again to continue" in str(caught.value)
        assert caught.value.report == report["output"]["report"]
    assert report["status"] == ("published" if is_deferred else "stopped")
    assert lease_is_free(tmp_path)


def test_a_result_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    publish_rows(store)
    verify = ["verify", store.uri, "--json", "--partition", "date=2026-11-24"]
    for stdout, command in (
        ("full", verify),
        ("closed", verify),
        ("full", ["schema"]),
        ("full", ["--help"]),
        ("full", ["inspect", store.uri]),
    ):
        done = pipeline(*command, stdout=stdout)
        why = "Bad file descriptor" if stdout == "closed" else "No space left on device"
        assert done.code == 7, (stdout, command, done)
        assert done.stderr.endswith(
            f"error: cannot write the result to stdout ({why}); the work of the command is kept\n"
        )
        assert "Traceback" not in done.stderr


def test_a_closed_reader_or_stderr_does_not_change_the_exit_code(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path / "out"))
    publish_rows(store)
    run = ("run", "none.yaml", "--json")
    results = [
        pipeline("schema", stdout="unread"),
        pipeline("verify", store.uri, "--json", stdout="unread"),
        pipeline("inspect", store.uri, stdout="unread"),
        pipeline("schema", stderr="closed"),
        pipeline("schema", stderr="full"),
        pipeline(*run, stderr="full"),
        pipeline(*run, stderr="closed"),
    ]
    assert [result.code for result in results] == [0, 0, 0, 0, 0, 2, 2]
    assert [result.stderr for result in results] == [""] * 7
    assert json.loads(results[3].stdout) == json.loads(results[4].stdout)
    assert [document(result.stdout)["exit_code"] for result in results[5:]] == [2, 2]


def test_no_file_gets_the_number_of_a_closed_stream(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import os, sys\n"
            "for number in (0, 1, 2): os.close(number)\n"
            "from pipeline.process import terminal\n"
            "terminal.hold_streams()\n"
            f"file = os.open({str(tmp_path / 'file')!r}, os.O_CREAT | os.O_WRONLY)\n"
            "os._exit(0 if file > 2 else 1)",
        ],
        env=environment(),
        check=False,
    )
    assert done.returncode == 0
