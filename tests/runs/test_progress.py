"""Progress is true: by batches, never backwards, with a rate of the last minute; no guesses."""

from __future__ import annotations

import io
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.cli import environment, write_job

from pipeline.inference.slice_progress import Rows
from pipeline.process import screen
from pipeline.report.recording.rate import WINDOW_S, Rate
from pipeline.runs.progress import (
    Counts,
    Silent,
    TerminalProgress,
    describe,
    duration,
)

SLICE = 64
NUM_SLICES = 5

steps = st.lists(
    st.tuples(st.integers(0, NUM_SLICES - 1), st.integers(0, SLICE), st.booleans()), max_size=60
)


@given(steps)
def test_rows_never_become_less_and_end_at_what_is_committed(
    told: Sequence[tuple[int, int, bool]],
) -> None:
    """Actors die and slices are computed again; what is told may be late or lost."""
    counts, committed, last = Counts(SLICE * NUM_SLICES, 0), set[int](), 0
    for index, num_rows, is_committed in told:
        key = (0, index * SLICE)
        if is_committed and index not in committed:
            committed.add(index)
            counts.committed(key, SLICE, 0)
        else:
            counts.told({key: num_rows})
        assert last <= counts.rows <= SLICE * NUM_SLICES
        assert counts.rows >= SLICE * len(committed)
        last = counts.rows
    for index in set(range(NUM_SLICES)) - committed:
        counts.committed((0, index * SLICE), SLICE, 0)
    assert counts.rows == SLICE * NUM_SLICES


def test_a_second_attempt_at_a_slice_is_not_counted_twice() -> None:
    counts = Counts(1000, 100)
    counts.told({(0, 0): 200, (1, 0): 50})
    assert counts.rows == 350
    counts.told({(0, 0): 32})  # another actor begins the slice anew
    assert counts.rows == 350
    counts.committed((0, 0), 256, 3)
    counts.told({(0, 0): 256})  # late
    assert (counts.rows, counts.quarantined) == (100 + 256 + 50, 3)


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
    counts = Counts(5000, 1000)
    counts.committed((0, 0), 250, 4)
    plain = describe(counts, 50.0, "1 min 05 s", with_bar=False)
    assert plain == (
        "1,250 of 5,000 rows, 25%, 50 rows/s, 4 quarantined, 1 min 05 s so far, 1 min 15 s left"
    )
    assert describe(counts, 50.0, "1 s", with_bar=True).startswith("[#####...............] 1,250")
    assert describe(counts, 0.0, "1 s", with_bar=False).endswith("unknown left")
    assert describe(Counts(None, 5), 1.0, "1 s", with_bar=True).startswith("5 rows, 1 rows/s")


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0 s"), (59.4, "59 s"), (75, "1 min 15 s"), (7500, "2 h 05 min")]
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@dataclass
class Reports:
    """What actors report, without Ray."""

    rows: Rows = field(default_factory=dict)
    actors: str = ""


def test_batches_move_the_progress_before_any_slice_is_committed() -> None:
    progress, told = TerminalProgress(), Reports()
    with progress.rows(1000, done=0, under_way=told):
        assert progress.line().startswith("loading the model; 1,000 of 1,000 rows")
        told.actors = "2 of 2 actors wait"
        assert "computed; 2 of 2 actors wait, 0 s so far" in progress.line()
        progress._look()
        told.rows = {(0, 0): 320}
        progress._look()
        assert progress.line().startswith("320 of 1,000 rows, 32%")
        progress.advance((0, 0), 512, 0)
        assert progress.line().startswith("512 of 1,000 rows")
    progress.phase("checking and publishing")
    assert progress.line().startswith("checking and publishing, 0 s so far")


def test_phases_are_log_lines_and_quiet_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "pipeline"):
        with TerminalProgress() as progress:
            progress.phase("starting Ray")
        quiet = Silent()
        quiet.phase("hidden")
        with quiet.rows(10, done=0):
            quiet.advance((0, 0), 10, 0)
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
    said = os.read(ours, 4096)
    os.close(ours)
    assert done.returncode == 0
    assert (b"looking at rows" in said) == is_terminal
