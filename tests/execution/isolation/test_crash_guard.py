"""A slice runs in the worker until a process ended over it, and in a child from then on."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest
from deadly import (
    KILL,
    SEGFAULT,
    STAGE,
    Doubling,
    die_over,
    double,
    rows_of,
)
from deadly_stages import CRASH, CrashingDecoder
from support import HANG_S
from support.inputs.badfiles import base_image, encode
from support.runs.checkout import PYTHONPATH

from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.figures import Counters, StageCounters
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.isolation.crash_guard import GIVE_UP_AFTER, Guard, StagePlan, fail
from pipeline.execution.isolation.crash_marks import CrashMarks, Earlier
from pipeline.execution.stages import Preprocessing, SliceWork
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec

pytestmark = pytest.mark.early

NAME = "predict-0-0"


class Case:
    """A guard whose stage is done here, in a child, or not at all."""

    def __init__(self, folder: Path) -> None:
        self.attempts = CrashMarks(folder / "marks")
        self.work = Doubling(str(folder / "starts"))
        self.num_here = 0
        plans = [StagePlan(STAGE, 4, self._here)]
        self.guard = Guard(self.work, plans, self.attempts, row_timeout_s=20.0, fields=IMAGE_FIELDS)

    def _here(self, rows: pa.Table, counters: Counters) -> pa.Table:
        self.num_here += any(failure is None for failure in failures_of(rows))
        return double(rows, counters)

    def run(self, values: list[int], name: str = NAME) -> tuple[list[str | None], Counters]:
        counters: Counters = {}
        done = self.guard.run(name, rows_of(values), counters)
        return done.column("error").to_pylist(), counters


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    made = Case(tmp_path)
    with closing(made.guard):
        yield made


def test_the_first_attempt_runs_here_and_leaves_nothing(case: Case) -> None:
    assert case.run([1, 2, 3]) == ([None] * 3, {STAGE: StageCounters(3, 3).to_dict()})
    assert (case.num_here, case.work.pids) == (1, [])
    assert list(case.attempts.folder.iterdir()) == []


@pytest.mark.slow
def test_a_slice_in_a_child_has_the_room_of_all_others(tmp_path: Path) -> None:
    attempts, log = CrashMarks(tmp_path / "marks"), list[str]()
    inside, may_end = threading.Semaphore(0), threading.Event()

    def here(rows: pa.Table, counters: Counters) -> pa.Table:
        log.append("begins")
        inside.release()
        assert may_end.wait(60)
        log.append("ends")
        return double(rows, counters)

    release = functools.partial(log.append, "released")
    work = Doubling(str(tmp_path / "starts"))
    guard = Guard(work, [StagePlan(STAGE, 4, here)], attempts, 60.0, release, fields=IMAGE_FIELDS)
    die_over(attempts, "isolated")
    with closing(guard), ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(guard.run, name, rows_of([1]), {}) for name in ("one", "two")]
        for _ in runs:
            assert inside.acquire(timeout=HANG_S)
        runs += [pool.submit(guard.run, "isolated", rows_of([SEGFAULT, 1, 2]), {})]
        runs += [pool.submit(guard.run, "late", rows_of([1, 2]), {})]
        may_end.set()
        errors = [future.result().column("error").to_pylist() for future in runs]
    assert errors == [[None], [None], [Reason.NATIVE_CRASH, None, None], [None, None]]
    at = log.index("released")
    assert log[:at].count("begins") == log[:at].count("ends")


def test_an_error_is_no_death(case: Case) -> None:
    with pytest.raises(RuntimeError), case.attempts.attempt(NAME):
        raise RuntimeError
    with case.attempts.attempt(NAME) as earlier:
        assert earlier == Earlier()


def test_after_a_death_the_row_at_fault_is_found_in_a_child(case: Case) -> None:
    die_over(case.attempts, NAME)
    errors, counters = case.run([0, 1, SEGFAULT, 3, 4])
    assert errors == [None, None, Reason.NATIVE_CRASH, None, None]
    assert case.num_here == 0
    isolated = counters["isolated"]
    assert (isolated["num_rows"], isolated["num_quarantined"]) == (5, 1)
    assert isolated["dead_processes"] == 3  # the worker, a child over the batch, one over the row
    assert counters[STAGE]["rows_quarantined"] == 1


def test_a_single_kill_costs_a_child_and_the_next_slices_run_here_again(case: Case) -> None:
    die_over(case.attempts, NAME)
    assert case.run([1, 2])[0] == [None, None]
    assert (len(case.work.pids), case.num_here) == (1, 0)
    assert case.run([1, 2], "predict-0-256")[0] == [None, None]
    assert case.run([1, 2])[0] == [None, None]
    assert (len(case.work.pids), case.num_here) == (1, 2)


def test_a_row_that_two_workers_were_killed_over_alone_ran_out_of_memory(case: Case) -> None:
    die_over(case.attempts, NAME)
    die_over(case.attempts, NAME, (STAGE, "r0"), (STAGE, "r1"))
    die_over(case.attempts, NAME, (STAGE, "r2"))
    die_over(case.attempts, NAME, (STAGE, "r0"), (STAGE, "r1"))
    errors, counters = case.run([0, KILL, 2])
    assert errors == [None, Reason.OUT_OF_MEMORY, None]
    assert counters["isolated"]["dead_processes"] == 4  # and no child


@pytest.mark.slow
def test_workers_that_die_over_batches_twice_have_their_rows_taken_one_by_one(
    tmp_path: Path,
) -> None:
    for times, starts in ((1, 2), (2, 1)):
        folder = tmp_path / str(times)
        folder.mkdir()
        attempts, work = CrashMarks(folder / "marks"), Doubling(str(folder / "starts"), max_rows=1)
        for _ in range(3 - times):
            die_over(attempts, NAME)  # as a child was starting: that tells nothing
        for _ in range(times):
            die_over(attempts, NAME, (STAGE, None))
        plan = StagePlan(STAGE, 2, double)
        with closing(
            Guard(work, [plan], attempts, row_timeout_s=20.0, fields=IMAGE_FIELDS)
        ) as guard:
            done = guard.run(NAME, rows_of([1, 2]), {})
        assert done.column("error").to_pylist() == [None, None]
        assert len(work.pids) == starts


GUARDED = """
import sys
from pathlib import Path
from deadly import GROW, MAX_BYTES, STAGE, Doubling, double, rows_of
from pipeline.core.schema import IMAGE_FIELDS
from pipeline.execution.isolation.crash_marks import CrashMarks
from pipeline.execution.isolation.crash_guard import Guard
from pipeline.execution.isolation.crash_guard import StagePlan
guard = Guard(Doubling(sys.argv[2]), [StagePlan(STAGE, 2, double)], CrashMarks(Path(sys.argv[1])),
              60.0, max_bytes=MAX_BYTES, fields=IMAGE_FIELDS)
print(guard.run("predict-0-0", rows_of([1, GROW, 3]), {}).column("error").to_pylist())
guard.close()
"""


@pytest.mark.slow  # test_poison_rows has such a row in `make test`
def test_a_worker_that_takes_too_much_memory_ends_and_its_row_is_found(tmp_path: Path) -> None:
    command = [sys.executable, "-c", GUARDED, str(tmp_path / "marks"), str(tmp_path / "starts")]
    path = os.pathsep.join([PYTHONPATH, *sys.path])
    first, second = (
        subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(2)
    )
    assert (first.returncode, first.stdout) == (1, "")
    assert first.stderr == "its process took more than 400 MiB: it ends\n"
    assert (second.returncode, second.stdout) == (0, "[None, 'out_of_memory', None]\n")


def test_attempts_of_two_processes_at_one_slice_do_not_disturb_each_other(tmp_path: Path) -> None:
    attempts = CrashMarks(tmp_path / "marks")

    def try_often(_: int) -> int:
        for _ in range(500):
            with attempts.attempt(NAME):
                attempts.note(NAME, STAGE, None)
        return 1

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(try_often, range(4))) == 4


def test_a_slice_that_keeps_killing_workers_is_given_up(case: Case) -> None:
    for _ in range(GIVE_UP_AFTER):
        die_over(case.attempts, NAME)
    errors, _ = case.run([1, 2])
    assert errors == [Reason.NATIVE_CRASH] * 2
    assert (case.num_here, case.work.pids) == (0, [])


@pytest.mark.slow
def test_where_much_has_died_slices_go_to_one_child_from_the_start(case: Case) -> None:
    for number in range(3):
        die_over(case.attempts, f"predict-0-{number}")
        case.run([SEGFAULT, 1], f"predict-0-{number}")
    before = len(case.work.pids)
    for number in range(3, 6):
        assert case.run([1, 2], f"predict-0-{number}")[0] == [None, None]
    assert (case.num_here, len(case.work.pids)) == (0, before)
    assert case.run([1, SEGFAULT], "predict-0-9")[0] == [None, Reason.NATIVE_CRASH]


@pytest.mark.slow
def test_an_image_that_ends_its_decoder_costs_itself(tmp_path: Path) -> None:
    spec = ImageInput(TransformSpec(24, 28, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    images = [encode(base_image(seed), "JPEG") for seed in range(5)]
    images[2] += CRASH
    rows = pa.table(
        {
            "row_id": [f"r{index}" for index in range(5)],
            "image": pa.array(images, pa.large_binary()),
            **failure_columns([None] * 5),
        }
    )
    attempts = CrashMarks(tmp_path / "marks")
    die_over(attempts, NAME)
    decoder = CrashingDecoder(spec, 10**6, 10**6, IMAGE_FIELDS)
    counters: Counters = {}
    with closing(
        Guard(SliceWork(decoder, None), [decoder.plan], attempts, 60.0, fields=IMAGE_FIELDS)
    ) as guard:
        done = guard.run(NAME, rows, counters)
    digest = hashlib.sha256(images[2]).hexdigest()
    message = "its process was ended by SIGSEGV"
    crash = Failure(Reason.NATIVE_CRASH, "decode", message, digest, len(images[2]))
    assert failures_of(done) == [None, None, crash, None, None]
    assert done.equals(Preprocessing(spec, 10**6, 10**6, IMAGE_FIELDS)({}, fail(rows, {2: crash})))
    decoded = counters["decode"]
    assert (decoded["rows_in"], decoded["rows_out"], decoded["rows_quarantined"]) == (5, 4, 1)
