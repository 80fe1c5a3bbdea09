"""Test that progress counts finished batches, never goes back, and has the last minute's rate."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs.cli import environment, write_job

from pipeline.process import screen
from pipeline.process.liveness import note_unfinished
from pipeline.report.showing.blocks import format_duration
from pipeline.report.so_far import WINDOW_S, Rate
from pipeline.runs.progress import (
    Counts,
    Silent,
    TerminalProgress,
    describe,
)


def test_the_rate_is_that_of_the_last_minute_without_the_loading_before_it() -> None:
    rate = Rate()
    for second in range(30):
        rate.add(float(second), 0)
        assert rate.rows_per_s is None
    for second in range(30, 40):
        rate.add(float(second), 10 * (second - 29))
    assert rate.rows_per_s == pytest.approx(10)
    for second in range(40, 40 + 3 * int(WINDOW_S)):
        rate.add(float(second), 100 + 2 * (second - 39))
    assert rate.rows_per_s == pytest.approx(2)
    for second in range(300, 300 + 2 * int(WINDOW_S)):
        rate.add(float(second), 1000)
    assert rate.rows_per_s == 0


def test_a_line_has_rows_rate_elapsed_and_what_is_left() -> None:
    counts = Counts(5000, 1250, 4)
    plain = describe(counts, 50.0, "1 min 05 s", with_bar=False)
    assert plain == (
        "1,250 of 5,000 rows, 25%, 50 rows/s, 4 quarantined, 1 min 05 s so far, 1 min 15 s left"
    )
    assert describe(counts, 50.0, "1 s", with_bar=True).startswith("[#####...............] 1,250")
    assert describe(counts, 0.0, "1 s", with_bar=False).endswith("unknown left")
    assert describe(Counts(None, 5), 1.0, "1 s", with_bar=True).startswith("5 rows, 1 rows/s")
    assert "rows, 0.25 rows/s" in describe(Counts(None, 5), 0.25, "1 s", with_bar=True)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (7500, "2 h 05 min")]
)
def test_durations_have_seconds_minutes_or_hours(seconds: float, words: str) -> None:
    assert format_duration(seconds, 0) == words


def test_committed_slices_move_the_progress() -> None:
    progress = TerminalProgress()
    with progress.rows(1000, done=0):
        assert progress.line().startswith("loading the model; 1,000 of 1,000 rows")
        progress._trouble = "waiting for 2 x 0.75 CPU"  # so none loads a model
        assert progress.line().startswith("waiting for 2 x 0.75 CPU; 1,000 of 1,000 rows are left,")
        progress._look()
        note_unfinished(3, 1200)
        words = "predicting, no slice is finished yet; 3 rows and 1,200 tokens of slices under way"
        assert progress.line().startswith(words)
        progress.advance(320, 1)
        progress._look()
        assert progress.line().startswith("320 of 1,000 rows, 32%")
        assert progress.line().endswith("; 3 rows and 1,200 tokens of slices under way")
        note_unfinished(0, 0)
        progress.advance(192, 0)
        assert progress.line().startswith("512 of 1,000 rows")
        assert progress.line().endswith(" left")
    progress.phase("checking and publishing")
    assert progress.line().startswith("checking and publishing, ")


def test_phases_are_log_lines_and_quiet_shows_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        with TerminalProgress() as progress:
            progress.phase("starting Ray")
        quiet = Silent()
        quiet.phase("hidden")
        with quiet.rows(10, done=0):
            quiet.advance(10, 0)
    assert [record.getMessage() for record in caplog.records] == ["starting Ray"]


def test_a_record_stands_on_a_line_of_its_own_above_the_status() -> None:
    stream = io.StringIO()
    handler = screen._AboveStatus(stream)
    screen.show_status("12 of 20 rows \x1b[2J", stream)
    handler.emit(logging.LogRecord("pipeline", logging.INFO, "", 0, "hello", (), None))
    screen.show_status("13", stream)
    screen.clear_status()
    written = stream.getvalue()
    assert r"12 of 20 rows \x1b[2J" in written
    assert "\x1b" not in written
    assert [line.rpartition("\r")[2] for line in written.split("\n")] == ["hello", ""]


FIRST_WORD = """
import sys
from pipeline.runs import progress
from pipeline.commands.app import app

def phase(self, what, is_logged=True):
    print(what, sorted({"torch", "ray", "pyarrow", "pandas", "fsspec"} & set(sys.modules)))
    if is_logged:
        raise SystemExit

progress.TerminalProgress.phase = phase
app(["run", sys.argv[1]])
"""


def test_the_first_word_comes_before_the_heavy_imports(tmp_path: Path) -> None:
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "in"), "format": "images"},
        str(tmp_path / "out"),
    )
    done = subprocess.run(
        [sys.executable, "-c", FIRST_WORD, job], env=environment(), capture_output=True, text=True
    )
    first, logged = done.stdout.splitlines()
    assert first == f"reading {job} []"  # on a terminal
    assert logged == f"running {job} ['pyarrow']"  # in a log only once the job is known to be right


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_script_on_a_terminal_sees_how_far_it_is(is_terminal: bool):
    ours, theirs = os.openpty() if is_terminal else os.pipe()
    program = (
        "from pipeline.runs.progress import shown_on\n"
        "with shown_on(None) as shown: shown.phase('looking at rows', is_logged=False)"
    )
    done = subprocess.run([sys.executable, "-c", program], stderr=theirs, check=True)
    os.close(theirs)
    output = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 0
    assert (b"looking at rows" in output) == is_terminal
