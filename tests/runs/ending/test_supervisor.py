"""Test that a run ends in time wherever it waits: signal, deadline, standstill, lost head."""

from __future__ import annotations

import json
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from models import LABELS
from support import HANG_S
from support.runs.cli import (
    environment,
    photos_job,
    pipeline,
    start,
    survivors,
    wait_until,
    working,
)
from support.runs.published_rows import read_predictions
from support.servers.rayhead import RayHead

from pipeline.core.errors import InfraError, PipelineError, Stopped
from pipeline.execution.health import HeadAnswers, ProcessLives
from pipeline.process.interrupts import STOPS, interrupt, reason, stoppable_body
from pipeline.process.run_scope import new_scope
from pipeline.runs.ending.supervisor import Stall
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS = 48
# The main thread waits for a lock in C, in which Python handles no signal.
BLOCKED = """
import ctypes, datetime as dt, sys
from pathlib import Path
from pipeline.process.keeper import keep
from pipeline.core.errors import Stopped
from pipeline.job.reading.loader import read_job
from pipeline.commit.layout import Layout
from pipeline.runs.context import RunContext, RunOptions
from pipeline.report.recorder import RunRecorder
from pipeline.runs.ending.supervisor import stoppable, supervise
from pipeline.storage.store import Store

def work():
    job = read_job(sys.argv[1], date=dt.date(2026, 11, 24))
    store, layout = Store(job.sink.uri), Layout(job.sink.partition)
    record = RunRecorder("a-run", layout.name)
    run = RunContext(job, RunOptions(owns_process=True), store, layout, record)
    with supervise(run, lambda error: store.put("last-will", str(error).encode())), stoppable(run):
        libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        libc.pthread_mutex_lock(mutex)
        try:
            print("blocked", flush=True)
            libc.pthread_mutex_lock(mutex)
        except Stopped:  # the signal was quicker
            libc.pthread_mutex_lock(mutex)

keep(work, lambda code, left: print("lost", code, left))
"""


def wait_for(why: PipelineError, then: Callable[[], None] = lambda: None) -> None:
    """Wait, as a driver does, until another thread interrupts us."""
    try:
        threading.Thread(target=interrupt, args=(why,)).start()  # it may already come in here
        threading.Event().wait(60)
    finally:
        then()


@pytest.fixture(autouse=True)
def _new_life() -> Iterator[None]:
    with new_scope():
        yield


def test_the_main_thread_is_interrupted_while_it_waits():
    why = Stopped("deadline reached")
    before = signal.getsignal(signal.SIGALRM)
    with pytest.raises(Stopped, match="deadline reached"), stoppable_body():
        wait_for(why)
    assert reason() is why
    assert signal.getsignal(signal.SIGALRM) == before


def test_another_thread_is_interrupted_too():
    started = threading.Event()

    def work() -> None:
        with stoppable_body():
            started.set()
            while True:
                time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        works = pool.submit(work)
        started.wait()
        interrupt(InfraError("no progress"))
        with pytest.raises(InfraError, match="no progress"):
            works.result(60)


def test_the_first_reason_counts_and_a_run_is_interrupted_once_and_not_when_done():
    interrupt(Stopped("nothing runs"))
    assert reason() is None
    first = Stopped("first")
    with pytest.raises(Stopped, match="first"), stoppable_body():
        wait_for(first, then=lambda: interrupt(InfraError("second")))
    assert reason() is first


def test_an_interrupt_from_elsewhere_is_raised_unchanged():
    with pytest.raises(KeyboardInterrupt), stoppable_body():
        raise KeyboardInterrupt
    with pytest.raises(PipelineError, match="own"), stoppable_body():
        raise PipelineError("own")


def test_a_standstill_is_an_unchanged_mark_for_the_whole_limit():
    stall = Stall(10.0, tick_s=1.0)
    assert not any(stall.is_over(float(now), "a") for now in range(10))
    assert not stall.is_over(10.0, "b")
    assert not any(stall.is_over(float(now), "b") for now in range(11, 20))
    assert stall.is_over(20.0, "b")


def test_time_in_which_the_process_was_stopped_is_no_standstill():
    stall = Stall(10.0, tick_s=1.0)
    stall.is_over(0.0, "a")
    assert not stall.is_over(1000.0, "a"), "stopped by SIGSTOP, or the machine slept"
    assert any(stall.is_over(1000.0 + second, "a") for second in range(20))


def test_a_head_counts_as_lost_only_after_it_has_not_answered_for_a_while():
    now = 0.0
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        check = HeadAnswers(address, lambda: now)
        now = 6.0
        assert check() is None
    now = 12.0
    assert check() is None
    now = 40.0
    assert f"the cluster's head at {address} has not answered for 34 s" in str(check())


@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_a_driver_that_handles_no_signal_is_ended_by_its_watchdog(tmp_path: Path, signals: int):
    case = Case(tmp_path)
    process = subprocess.Popen(
        [sys.executable, "-c", BLOCKED, case.job],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == (6 if signals == 1 else -signal.SIGTERM), stderr
    if signals == 1:
        assert stderr.startswith("error: SIGTERM received: nothing was computed yet")
        assert case.store.read_bytes("last-will").decode() in stderr
    else:
        assert not case.store.exists("last-will"), "at once"


class Case:
    """A job whose model hangs while a file is there."""

    def __init__(self, folder: Path, factory: str = "stuck:stuck") -> None:
        self.hang_file, self.store = folder / "hang", Store(str(folder / "out"))
        self.env = {"PIPELINE_ALLOW_IMPORT": "stuck", "TEST_STUCK": str(self.hang_file)}
        self.job = photos_job(
            folder,
            NUM_ROWS,
            model={"factory": factory, "labels": LABELS, "batch_size": 8},
            run={"slice_rows": 8},
        )

    def run(self, *arguments: str) -> Any:
        return pipeline("run", self.job, "--date", DATE, "--json", *arguments, env=self.env)

    def report(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.text("report.json"))
        return document

    def text(self, name: str) -> str:
        paths = [f.path for f in self.store.list_files("reports") if f.path.endswith(name)]
        return self.store.read_bytes(max(paths)).decode()

    def lease_is_free(self) -> bool:
        beats = [f.path for f in self.store.list_files("_control") if f.path.endswith(".hb")]
        return b'"released": true' in self.store.read_bytes(max(beats))

    def staged(self) -> int:
        paths = [file.path for file in self.store.list_files("_control")]
        return sum("/staging/" in path and path.endswith(".parquet") for path in paths)

    def assert_completes(self, *arguments: str, kept: int = 1) -> None:
        done = self.run(*arguments)
        assert done.code == 0, done.stderr
        assert done.json["slices"]["resumed"] >= kept
        assert done.json["rows"]["left"] == 0
        assert read_predictions(self.store.uri, PARTITION).num_rows == NUM_ROWS


@pytest.mark.ray
@pytest.mark.slow
def test_a_hanging_model_is_ended_by_standstill_or_deadline_and_a_rerun_completes(tmp_path: Path):
    case = Case(tmp_path)
    case.hang_file.touch()
    stalled = case.run("--set", "run.stall_s=30")
    assert stalled.code == 7, stalled.stderr
    assert "no progress for 30 s (run.stall_s)" in stalled.json["error"]
    assert "rows are done" in stalled.json["error"]
    report = case.report()
    assert (report["status"], report["exit_code"]) == ("failed", 7)
    assert report["rows"]["left"] == NUM_ROWS - report["rows"]["computed"] > 0
    assert report["slices"]["left"] * 8 == report["rows"]["left"]
    assert any("PredictorActor" in line and "running" in line for line in report["in_flight"])
    assert all(line in stalled.stderr for line in report["in_flight"][:3])
    dump = case.text("in_flight.txt")
    assert "missing: unit" in dump
    assert "thread MainThread:" in dump
    assert case.lease_is_free()

    stopped = case.run("--set", "run.deadline=25s")
    assert stopped.code == 6, stopped.stderr
    assert "deadline 25s reached" in stopped.json["error"]
    assert (case.report()["status"], case.report()["in_flight"]) == ("stopped", [])
    assert case.lease_is_free()
    case.hang_file.unlink()
    case.assert_completes()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("signals", [1, 2])
def test_signals_end_a_run_whose_actors_hang_and_no_process_stays(tmp_path: Path, signals: int):
    case = Case(tmp_path)
    case.hang_file.touch()
    process = start("run", case.job, "--date", DATE, env=case.env)
    wait_until(Path(f"{case.hang_file}.now").exists, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    assert any("MapWorker" in process.name() for process in tree)
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):  # two signals at once may arrive as one
            process.wait(0.3)
    _, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == (6 if signals == 1 else -signal.SIGTERM), stderr
    assert survivors(tree) == []
    if signals == 1:
        assert case.report()["status"] == "stopped"
        assert case.lease_is_free()
    case.hang_file.unlink()
    case.assert_completes(kept=0)


FAILED_CHECK = """\
[2026-11-26 21:17:19,252 E 7 8] (raylet) dlmalloc.cc:215: mmap failed with error: no memory
[2026-11-26 21:17:19,380 C 7 8] (raylet) plasma_allocator.cc:79:  An unexpected system state
*** StackTrace Information ***
"""


@pytest.mark.parametrize(
    ("ends", "log", "reason"),
    [
        ("os.kill(os.getpid(), 9)", "", "raylet ended (SIGKILL, as happens when memory runs out)"),
        ("os._exit(1)", FAILED_CHECK, "raylet ended (exit code 1): mmap failed with error: no me"),
        ("os._exit(0)", "no log of Ray's", "raylet ended (exit code 0)"),
        (
            "signal.signal(signal.SIGXFSZ, signal.SIG_DFL); os.kill(os.getpid(), signal.SIGXFSZ)",
            "",
            "raylet ended (SIGXFSZ, a file grew beyond what ulimit -f allows)",
        ),
    ],
)
def test_the_error_says_why_a_process_of_ray_ended(
    tmp_path: Path, ends: str, log: str, reason: str
):
    (tmp_path / "raylet.err").write_text(log)
    process = subprocess.Popen([sys.executable, "-c", f"import os, signal; {ends}"])
    info = SimpleNamespace(process=process, stderr_file=str(tmp_path / "raylet.err"))
    process.wait()
    assert str(ProcessLives("raylet", info)()).startswith(f"Ray's own process {reason}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("name", ["raylet", "ray::RuntimeEnvAgent", "gcs_server"])
@pytest.mark.parametrize("moment", ["start", "middle"])
def test_a_killed_process_of_ray_is_infrastructure_trouble_with_a_report_and_no_lease(
    tmp_path: Path, name: str, moment: str
):
    case = Case(tmp_path, "stuck:slow")
    case.env["RAY_TMPDIR"] = str(tmp_path / "ray")  # too long for sockets: a short link leads there
    process = start("run", case.job, "--date", DATE, "--json", env=case.env)
    if moment == "middle":
        wait_until(lambda: case.staged() > 0, process)
    processes: list[psutil.Process] = []
    wait_until(lambda: bool(processes.extend(named(process.pid, name)) or processes), process)
    tree = psutil.Process(process.pid).children(recursive=True)
    processes[0].kill()
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 7, stderr
    last = stderr.splitlines()[-2]
    assert last.startswith("error: Ray")
    assert "(raylet)" not in stdout + stderr
    document = json.loads(stdout)
    assert Path(document.pop("report")).name == "report.html"
    assert document == {"status": "error", "exit_code": 7, "error": last.removeprefix("error: ")}
    assert (case.report()["status"], case.report()["exit_code"]) == ("failed", 7)
    assert case.lease_is_free()
    assert survivors(tree) == []
    (kept,) = (tmp_path / "ray").iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert str(kept) in stderr
    assert {path.name for path in kept.glob("r/session_[0-9]*/*")} == {"logs"}


def named(driver: int, name: str) -> list[psutil.Process]:
    """The processes below a driver that are called so."""
    processes = []
    for child in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            processes += [child] if name in (child.name(), *child.cmdline()[:1]) else []
    return processes


@pytest.mark.ray
@pytest.mark.slow
def test_of_a_driver_that_is_killed_its_parent_stores_the_report_and_frees_the_lease(
    tmp_path: Path,
):
    case = Case(tmp_path, "stuck:slow")
    case.env["RAY_TMPDIR"] = str(tmp_path / "ray")
    process = start("run", case.job, "--date", DATE, "--json", env=case.env)
    wait_until(lambda: case.staged() > 0, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    working(process).kill()
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 7, stderr
    (error, again), document = stderr.splitlines()[-2:], json.loads(stdout)
    assert error == f"error: {document['error']}"
    assert again.endswith(f": python -m pipeline run {case.job} --date {DATE} --json")
    assert error.startswith("error: the process of the command ended (SIGKILL, as happens when")
    assert "rows are done" in error
    report = case.report()
    assert (report["status"], report["exit_code"], report["error"]) == (
        "failed",
        7,
        document["error"],
    )
    assert report["rows"]["left"] == NUM_ROWS - report["rows"]["computed"] < NUM_ROWS
    assert report["wall_s"] > 1
    assert case.lease_is_free()
    assert survivors(tree) == []
    assert {path.name for path in tmp_path.glob("ray/*/r/session_[0-9]*/*")} == {"logs"}
    case.assert_completes()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", STOPS)
def test_a_stopped_run_says_what_happened_how_to_go_on_and_nothing_of_rays(
    tmp_path: Path, number: signal.Signals
):
    case = Case(tmp_path, "stuck:slow")
    case.env["RAY_TMPDIR"] = str(tmp_path / "ray")
    process = start("run", case.job, "--date", DATE, "--quiet", env=case.env)
    wait_until(lambda: case.staged() > 0, process)
    tree = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=HANG_S)
    assert (process.returncode, stdout) == (6, "")
    lines = [text for text in stderr.splitlines() if " WARNING model.factory " not in text]
    line, again = lines
    assert line.startswith(f"error: {number.name} received: ")
    assert again.endswith(f": python -m pipeline run {case.job} --date {DATE} --quiet")
    assert list((tmp_path / "ray").iterdir()) == [], "what was asked for is no failure"
    assert survivors(tree) == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_killed_head_of_a_cluster_is_infrastructure_trouble_and_a_rerun_completes(
    tmp_path: Path,
):
    case = Case(tmp_path, "stuck:slow")
    with RayHead() as head:
        env, address = {**case.env, **head.secret}, ("--address", head.address)
        process = start("run", case.job, "--date", DATE, "--json", *address, env=env)
        wait_until(lambda: case.staged() > 0, process)
        (server,) = (process for process in head.processes() if process.name() == "gcs_server")
        server.kill()
        stdout, stderr = process.communicate(timeout=HANG_S)
    assert process.returncode == 7, stderr
    assert "has not answered for" in stderr
    assert "rows are done" in stdout.splitlines()[-1]
    assert case.report()["status"] == "failed"
    case.assert_completes()
