"""Text from data is one printable line wherever it is read; pipes are for grep."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.text import Text
from support import HANG_S
from support.runs.cli import WITHOUT_RAY, environment, write_job
from support.runs.report_examples import everywhere, report_of

from pipeline.core.printable import joined, printable
from pipeline.process.screen import LineFormatter, as_lines, clear_status, show_status
from pipeline.process.terminal import show_error
from pipeline.report.render import render_table
from pipeline.report.showing.printed import render_document

HOSTILE = "ln\x1b]0;PWNED\x07\n2026-01-01 00:00:00,000 ERROR forged\r\x00[red]\u202e\udcff.jpg"
SHOWN = r"ln\x1b]0;PWNED\x07\n2026-01-01 00:00:00,000 ERROR forged\r\x00[red]\u202e\udcff.jpg"


@given(st.text(st.characters()))
@example(HOSTILE)
def test_any_text_becomes_one_printable_line_and_printable_text_stays(text: str) -> None:
    line = printable(text)
    assert line == "" or (line.isprintable() and len(line.splitlines()) == 1)
    assert printable(line) == line
    line.encode("utf-8")
    assert joined(text) == printable(" ".join(text.split()))


def test_names_differ_on_the_screen_if_they_differ_in_what_is_not_printable() -> None:
    assert printable("a\nb") != printable("a b")
    assert printable(HOSTILE) == SHOWN


@pytest.mark.parametrize(
    ("message", "arguments"), [("skipped %s", (HOSTILE,)), (HOSTILE.replace("%", ""), ())]
)
def test_a_log_record_is_one_line_whatever_name_is_in_it(
    message: str, arguments: tuple[str, ...]
) -> None:
    record = logging.LogRecord("pipeline", logging.WARNING, "", 0, message, arguments, None)
    (line,) = LineFormatter().format(record).splitlines()
    assert line.isprintable()
    assert SHOWN in line


def test_a_status_line_is_cut_for_a_terminal_and_never_for_a_notebook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    line = "2 of 2 actors wait for cores " * 5
    on_terminal, in_cell = io.StringIO(), io.StringIO()
    show_status(line, on_terminal)
    clear_status()
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    shell = ModuleType("IPython")
    shell.__dict__["get_ipython"] = object
    monkeypatch.setitem(sys.modules, "IPython", shell)
    show_status(line, in_cell)
    clear_status()
    assert on_terminal.getvalue().startswith(f"\r{line[:79]}\r")
    assert in_cell.getvalue().startswith(f"\r{line}\r")


def test_the_lines_of_a_traceback_cannot_be_taken_for_records() -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        caught: Any = sys.exc_info()
    record = logging.LogRecord("pipeline", logging.ERROR, "", 0, "failed", (), caught)
    first, *others = LineFormatter().format(record).splitlines()
    assert first.endswith("ERROR failed")
    assert all(line.startswith("  ") and line.isprintable() for line in others)


@pytest.mark.parametrize(
    "page",
    [
        lambda: render_document({HOSTILE: HOSTILE, "all": [HOSTILE], "rows": [{HOSTILE: HOSTILE}]}),
        lambda: render_document({"first_ignored": [HOSTILE], "label": {"rows": HOSTILE}}),
        lambda: render_table(report_of(everywhere(HOSTILE))),
        lambda: render_table(report_of(everywhere(HOSTILE), status="nothing_to_do")),
    ],
)
def test_pages_and_tables_show_nothing_that_is_not_printable(page: Callable[[], Any]) -> None:
    lines = as_lines(page())
    assert all(line.isprintable() for line in lines.splitlines())
    assert r"\x1b]0;PWNED" in lines
    assert "[red]" in lines, "no markup"
    assert not any(line.startswith("2026-01-01") for line in lines.splitlines())


def test_what_is_piped_is_neither_wrapped_nor_filled_up_with_blanks() -> None:
    words = "word " * 400
    document = {"a": words.strip(), "b": {"c": 1}, "rows": [{"x": 1, "y": words}, {"x": 22}]}
    lines = as_lines(render_document(document)).splitlines()
    assert sum(words.strip() in line for line in lines) == 2
    assert [line for line in lines if line != line.rstrip()] == []
    assert as_lines(Text(words)) == f"{words.strip()}\n"


def test_an_error_is_one_printable_line(capsys: pytest.CaptureFixture[str]) -> None:
    show_error(ValueError(HOSTILE), 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("utf-8", marks=pytest.mark.slow)])
@pytest.mark.parametrize("options", [[], pytest.param(["--json"], marks=pytest.mark.slow)])
def test_a_plan_shows_hostile_names_escaped_in_every_encoding(
    options: list[str], encoding: str, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    hostile = HOSTILE.replace("\x00", "").replace("\udcff", "")
    for name in (f"{hostile}.jpg", f"{hostile}.txt", "\u65e5\u672c.txt", "caf\udce9.txt"):
        (folder / name).write_bytes(b"")
    job = write_job(
        tmp_path / "job.yaml", {"uri": str(folder), "format": "images"}, str(tmp_path / "out")
    )
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_RAY, "plan", job, "--no-try", *options],
        env=environment({"PYTHONIOENCODING": encoding, "LC_ALL": "C"}),
        capture_output=True,
        check=False,
        timeout=HANG_S,
    )
    shown = (done.stdout + done.stderr).decode(encoding)
    assert done.returncode == 0, shown
    assert all(line.isprintable() for line in shown.splitlines())
    assert not any(line.startswith("2026-01-01") for line in shown.splitlines())
    if options:
        assert json.loads(done.stdout)["input"]["shards"] == 1
    else:
        assert rb"ln\x1b]0;PWNED\x07\n" in done.stdout


def test_a_stream_without_an_encoding_for_it_gets_the_character_escaped() -> None:
    program = (
        "from pipeline.process import terminal; import sys;"
        "terminal.hold_streams();"
        "sys.stdout.write('\\u65e5\\udcff'); sys.stderr.write('\\u65e5\\udcff')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, *[rb"\u65e5\udcff"] * 2)
