"""Promise: one live run per partition, no wait for an ended one, and progress for readers."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from deadly import wait_until

from pipeline.commit.layout import Layout
from pipeline.commit.lease import Heartbeat, ask_to_stop, hold_lease, read_heartbeat, release_lost
from pipeline.core.documents import sealed, unsealed
from pipeline.core.environment import FAILPOINT
from pipeline.core.errors import GateRefused, InfraError, PartitionBusy, PipelineError, Stopped
from pipeline.process import failpoints
from pipeline.process.interrupts import stoppable_body
from pipeline.process.liveness import last_progress
from pipeline.process.run_scope import new_scope
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

LAYOUT = Layout("date=2026-11-24")
LONG_S = 1e6

HOLD = """
import sys
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.storage.store import Store
with hold_lease(Store(sys.argv[1]), Layout("date=2026-11-24"), "run-of-the-child", 1e6):
    print("held", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = {"machine": "elsewhere", "host": "far", "ttl_s": 100.0}
SHORT_S = 0.2


def acquire(store: Store, run_id: str = "the-next-run") -> int:
    """Take the lease and release it; return its epoch."""
    with hold_lease(store, LAYOUT, run_id, LONG_S) as lease:
        return lease.epoch


def leave_behind(store: Store, **changes: Any) -> int:
    """Make a lease that was never released, with some fields of its owner changed."""
    with hold_lease(store, LAYOUT, "the-silent-run", LONG_S) as lease:
        owner = {**asdict(lease.owner), **changes}
        epoch = lease.epoch
    store.put(LAYOUT.lease(epoch), json.dumps(owner).encode())
    beat = {"run_id": owner["run_id"], "released": False}
    store.put(LAYOUT.heartbeat(epoch), json.dumps(beat).encode())
    return epoch


def age(store: Store, path: str, seconds: float) -> None:
    """Move a file's time back, as the store sees it."""
    now = store.now().timestamp()
    os.utime(store.url(path), (now - seconds, now - seconds))


@contextmanager
def child_that_holds(store: Store) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, store.uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def disk(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_a_second_run_learns_who_holds_the_partition(any_store: Store):
    with hold_lease(any_store, LAYOUT, "run-1", 60.0) as lease:
        with pytest.raises(PartitionBusy) as caught:
            acquire(any_store)
        for word in ("date=2026-11-24", "run-1", socket.gethostname(), f"pid {os.getpid()}"):
            assert word in str(caught.value)
        lease.check()
    assert acquire(any_store) == lease.epoch + 1


def test_the_heartbeat_of_a_damaged_lease_names_its_holder(disk: Store):
    with hold_lease(disk, LAYOUT, "run-1", LONG_S) as lease:
        entry = disk.read_bytes(LAYOUT.lease(1))
        for damaged in (b"", b"[]", entry.replace(b'"pid": ', b'"pid": 1')):
            disk.put(LAYOUT.lease(1), damaged)
            with pytest.raises(PartitionBusy, match=f"run run-1 on .*pid {os.getpid()}"):
                acquire(disk)
    assert acquire(disk) == lease.epoch + 1


def test_other_files_beside_leases_are_ignored(disk: Store):
    disk.put(f"{LAYOUT.leases}/old.json", b"{}")
    assert acquire(disk) == 1


def test_the_files_of_a_lease_name_its_holder_until_it_is_released(disk: Store):
    def read(path: str) -> dict[str, Any]:
        return dict(json.loads(disk.read_bytes(path)))

    def renewing() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if thread.name == "lease"]

    with hold_lease(disk, LAYOUT, "run-1", LONG_S) as lease:
        owner = read(LAYOUT.lease(1))
        assert unsealed(disk.read_bytes(LAYOUT.lease(1))) == asdict(lease.owner)
        assert (owner["run_id"], owner["host"]) == ("run-1", socket.gethostname())
        assert (owner["pid"], owner["ttl_s"]) == (os.getpid(), LONG_S)
        beat = read(LAYOUT.heartbeat(1))
        assert (beat["run_id"], beat["released"], beat["pid"]) == ("run-1", False, os.getpid())
        assert owner["token"] not in beat.values()
        assert [thread.daemon for thread in renewing()] == [True], "it keeps no process alive"
    beat = read(LAYOUT.heartbeat(1))
    assert (beat["run_id"], beat["released"], beat["exit_code"]) == ("run-1", True, 0)
    assert renewing() == []


def test_a_process_that_must_end_releases_its_lease(disk: Store):
    with new_scope() as life, hold_lease(disk, LAYOUT, "run-1", LONG_S):
        life.close(60.0)
        assert acquire(disk) == 2


def test_only_the_lease_of_a_lost_run_is_released(disk: Store):
    lost = InfraError("lost")
    release_lost(disk, LAYOUT, "the-silent-run", lost)
    assert disk.list_files() == []
    epoch = leave_behind(disk, machine="elsewhere")
    release_lost(disk, LAYOUT, "another-run", lost)
    with pytest.raises(PartitionBusy, match="the-silent-run"):
        acquire(disk)
    release_lost(disk, LAYOUT, "the-silent-run", lost)
    assert acquire(disk) == epoch + 1


def test_the_later_of_two_runs_that_start_at_once_is_refused(
    disk: Store, monkeypatch: pytest.MonkeyPatch
):
    create_once = Store.create_once

    def create_late(store: Store, path: str, data: bytes, token: str) -> CreateOutcome:
        monkeypatch.setattr(Store, "create_once", create_once)
        assert acquire(store, "the-other-run") == 1
        return create_once(store, path, data, token)

    monkeypatch.setattr(Store, "create_once", create_late)
    with pytest.raises(PartitionBusy, match=rf"^partition {LAYOUT.name}: another run took the"):
        acquire(disk)


def test_without_a_proc_folder_a_process_is_identified_by_its_start_time(
    disk: Store, monkeypatch: pytest.MonkeyPatch
):
    read_text = Path.read_text

    def read(path: Path) -> str:
        if path.is_relative_to("/proc"):
            raise FileNotFoundError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", read)
    with hold_lease(disk, LAYOUT, "run-1", LONG_S) as lease:
        assert lease.owner.machine == f"{socket.gethostname()} {psutil.boot_time()}"
        assert lease.owner.pid_started == psutil.Process().create_time()
        with pytest.raises(PartitionBusy, match="run-1"):
            acquire(disk)
    epoch = leave_behind(disk, pid_started=lease.owner.pid_started - 1.5)
    assert acquire(disk) == epoch + 1
    leave_behind(disk, pid_started=lease.owner.pid_started - 0.5)
    with pytest.raises(PartitionBusy, match="the-silent-run"):
        acquire(disk)


def test_leases_of_partitions_are_independent(usual_store: Store):
    layouts = [LAYOUT, Layout("date=2026-11-25"), Layout(None)]
    with ExitStack() as stack:
        leases = [
            stack.enter_context(hold_lease(usual_store, layout, f"run-{number}", 60.0))
            for number, layout in enumerate(layouts)
        ]
        for lease in leases:
            lease.check()
        assert [lease.epoch for lease in leases] == [1, 1, 1]


def test_a_failed_first_renewal_releases_the_lease(disk: Store, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(failpoints, "_reached", Counter())
    monkeypatch.setenv(FAILPOINT, "leased:raise")
    with pytest.raises(RuntimeError), hold_lease(disk, LAYOUT, "run-1", LONG_S):
        pytest.fail("it has no lease")
    assert acquire(disk) == 2


@pytest.mark.parametrize("is_buried", [False, True], ids=["a zombie", "gone"])
def test_a_killed_run_can_be_followed_at_once(disk: Store, is_buried: bool):
    create_time = psutil.Process.create_time
    with child_that_holds(disk) as child, pytest.MonkeyPatch.context() as patch:
        with pytest.raises(PartitionBusy, match="run-of-the-child"):
            acquire(disk)
        patch.setattr(psutil.Process, "create_time", lambda self: create_time(self) + 3600)
        with pytest.raises(PartitionBusy, match="run-of-the-child"):
            acquire(disk)  # it is the same process when the clock is set
        patch.undo()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | (0 if is_buried else os.WNOWAIT))
        assert acquire(disk) == 2


@pytest.mark.parametrize(
    ("owner", "beat_age_s", "lease_age_s", "busy"),
    [
        ({}, 0, 0, "the-silent-run"),
        ({"pid_started": 12345.0}, 0, 0, None),  # another process has the pid now
        ({**ELSEWHERE, "pid_started": 12345.0}, 0, 0, "on far .* 100 s after its last renewal"),
        (ELSEWHERE, 90, 0, r"renewed 9\d s ago"),
        (ELSEWHERE, 90, 1000, r"renewed 9\d s ago"),
        (ELSEWHERE, 101, 0, None),
        (ELSEWHERE, -50, 0, "renewed 0 s ago"),
        (ELSEWHERE, None, 0, "the-silent-run"),  # it never renewed, so its lease is as old as it
        (ELSEWHERE, None, 101, None),
    ],
)
def test_a_silent_run_is_dead_with_its_process_or_elsewhere_after_its_ttl(
    disk: Store,
    owner: dict[str, Any],
    beat_age_s: float | None,
    lease_age_s: float,
    busy: str | None,
):
    epoch = leave_behind(disk, **owner)
    age(disk, LAYOUT.lease(epoch), lease_age_s)
    if beat_age_s is None:
        disk.delete([LAYOUT.heartbeat(epoch)])
    else:
        age(disk, LAYOUT.heartbeat(epoch), beat_age_s)
    if busy is None:
        assert acquire(disk) == epoch + 1
        return
    with pytest.raises(PartitionBusy, match=busy):
        acquire(disk)


def test_a_heartbeat_from_before_a_clock_was_set_back_counts_while_it_is_renewed(disk: Store):
    epoch = leave_behind(disk, machine="elsewhere", ttl_s=2.0)
    age(disk, LAYOUT.heartbeat(epoch), -3600)
    assert acquire(disk) == epoch + 1, "it is not renewed"

    leave_behind(disk, machine="elsewhere", ttl_s=121.0)
    age(disk, LAYOUT.heartbeat(epoch + 2), -3600)
    with pytest.raises(PartitionBusy, match="renewed 0 s ago"):
        acquire(disk)  # to watch for it would take more than a minute
    disk.delete([file.path for file in disk.list_files(LAYOUT.leases)])

    with hold_lease(disk, LAYOUT, "run-1", 2.0) as lease:
        owner = {**asdict(lease.owner), "machine": "elsewhere"}
        disk.put(LAYOUT.lease(lease.epoch), json.dumps(owner).encode())
        age(disk, LAYOUT.heartbeat(lease.epoch), -3600)
        with pytest.raises(PartitionBusy, match="run-1"):
            acquire(disk)


def test_the_clock_of_an_object_store_decides(any_store: Store):
    leave_behind(any_store, machine="elsewhere")
    with pytest.raises(PartitionBusy):
        acquire(any_store)
    # In a store whose times cannot be set, only the ttl can be shortened.
    any_store.delete([file.path for file in any_store.list_files(LAYOUT.leases)])
    epoch = leave_behind(any_store, machine="elsewhere", ttl_s=0.0)
    assert acquire(any_store) == epoch + 1


def test_a_run_that_was_overtaken_notices_and_changes_nothing(usual_store: Store):
    with hold_lease(usual_store, LAYOUT, "run-1", LONG_S) as lease:
        lease.check()
        later = {**asdict(lease.owner), "run_id": "run-2", "machine": "elsewhere"}
        usual_store.put(LAYOUT.lease(lease.epoch + 1), json.dumps(later).encode())
        with pytest.raises(PartitionBusy, match="another run took over the lease of run-1"):
            lease.check()
    with pytest.raises(PartitionBusy, match="run-2"):
        acquire(usual_store)


def test_a_failing_store_does_not_hide_how_the_run_ended(
    disk: Store, caplog: pytest.LogCaptureFixture
):
    def end_badly() -> None:
        folder = Path(disk.url(LAYOUT.leases))
        folder.rename(folder.with_name("moved"))
        folder.write_text("a file where the folder was")
        raise GateRefused("no")

    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(GateRefused),
        hold_lease(disk, LAYOUT, "run-1", LONG_S),
    ):
        end_badly()
    assert "lease of date=2026-11-24 not released: " in caplog.text


def test_a_failed_renewal_is_logged_and_tried_again(
    disk: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    put, renewed = Store.put, threading.Event()

    def put_again(store: Store, path: str, data: bytes) -> None:
        put(store, path, data)
        renewed.set()

    def fail(store: Store, path: str, data: bytes) -> None:
        monkeypatch.setattr(Store, "put", put_again)
        raise InfraError("no way there")

    with caplog.at_level(logging.WARNING), hold_lease(disk, LAYOUT, "run-1", 0.2):
        monkeypatch.setattr(Store, "put", fail)
        assert renewed.wait(60)
    assert "lease of date=2026-11-24 not renewed: no way there" in caplog.text


def test_a_renewal_is_not_progress(usual_store: Store):
    """A run that hangs renews its lease, and must still be found hanging."""
    with hold_lease(usual_store, LAYOUT, "a-run", ttl_s=0.2):
        before, seen = last_progress(), set[str]()
        until_s = time.monotonic() + 60
        while len(seen) < 3 and time.monotonic() < until_s:
            beat = usual_store.stat(LAYOUT.heartbeat(1))
            assert beat is not None
            seen.add(f"{beat.version} {beat.modified}")
        assert len(seen) >= 3
        assert last_progress() == before


def read_beat(store: Store, epoch: int = 1) -> Heartbeat:
    return read_heartbeat(store, LAYOUT, epoch)


def test_each_renewal_has_the_progress_and_the_last_one_the_end_of_the_run(any_store: Store):
    done = 0

    def tell() -> dict[str, Any]:
        return {"fingerprint": "f", "rows": 10, "rows_done": done, "phase": "predicting"}

    with suppress(GateRefused), hold_lease(any_store, LAYOUT, "run-1", SHORT_S, tell):
        done = 7
        assert wait_until(lambda: read_beat(any_store).rows_done == 7)
        now = read_beat(any_store)
        assert (now.released, now.rows, now.phase, now.exit_code) == (False, 10, "predicting", None)
        assert not now.process.has_ended()
        raise GateRefused("too few\nrows")
    end = read_beat(any_store)
    assert (end.released, end.exit_code, end.error) == (True, 3, "too few rows")
    assert (end.rows_done, end.rows) == (7, 10)


@pytest.mark.parametrize(
    ("error", "code"),
    [(InfraError("gone"), 7), (RuntimeError("what?"), 1), (KeyboardInterrupt(), 6)],
)
def test_whatever_ends_a_run_its_exit_code_is_in_the_last_renewal(
    error: BaseException, code: int, tmp_path: Any
):
    store = Store(str(tmp_path))
    with pytest.raises(type(error)), hold_lease(store, LAYOUT, "run-1", LONG_S):
        raise error
    assert read_beat(store).exit_code == code
    with hold_lease(store, LAYOUT, "run-2", LONG_S) as lease:
        assert lease.epoch == 2, "it let go"


def test_leases_of_the_same_fingerprint_are_attempts(tmp_path: Any):
    store, attempts = Store(str(tmp_path)), list[int | None]()
    for epoch, fingerprint in enumerate(["f", "f", "f", "g", "f"], start=1):
        fields = {"fingerprint": fingerprint}
        with hold_lease(store, LAYOUT, f"run-{epoch}", LONG_S, lambda fields=fields: fields):
            attempts.append(read_beat(store, epoch).attempt)
    assert attempts == [1, 2, 3, 1, 1]


@pytest.mark.parametrize(
    "progress", [RuntimeError("broken"), {"rows": float("nan")}, {"rows": {1}}, 5]
)
def test_a_run_with_unknown_progress_keeps_its_lease(progress: Any, tmp_path: Any):
    store = Store(str(tmp_path))

    def tell() -> Any:
        if isinstance(progress, Exception):
            raise progress
        return progress

    with hold_lease(store, LAYOUT, "run-1", LONG_S, tell) as lease:
        lease.check()
        assert (read_beat(store).run_id, read_beat(store).rows) == ("run-1", None)
    assert read_beat(store).released


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"rows": "ten", "eta_s": 1e999, "pid": null, "new": [1]}']
)
def test_a_heartbeat_of_any_other_form_is_empty_and_stops_nobody(data: bytes, tmp_path: Any):
    store = Store(str(tmp_path))
    assert Heartbeat.from_json(data) == Heartbeat()
    with hold_lease(store, LAYOUT, "run-1", LONG_S):
        pass
    store.put(LAYOUT.heartbeat(1), data)
    owner = unsealed(store.read_bytes(LAYOUT.lease(1)))
    store.put(LAYOUT.lease(1), sealed({**owner, "pid_started": 1.0}))
    with hold_lease(store, LAYOUT, "run-2", LONG_S) as lease:
        assert lease.epoch == 2


def test_the_last_heartbeat_of_a_lost_run_stays_when_its_lease_is_released_for_it(tmp_path: Any):
    store = Store(str(tmp_path))
    with hold_lease(store, LAYOUT, "run-1", LONG_S, lambda: {"rows": 10, "rows_done": 4}):
        release_lost(store, LAYOUT, "run-1", InfraError("killed"))
        end = read_beat(store)
    assert (end.released, end.exit_code, end.error) == (True, 7, "killed")
    assert (end.rows, end.rows_done, end.attempt) == (10, 4, 1)


def run_until_stopped(store: Store, before: Callable[[int], object]) -> PipelineError:
    def run() -> None:
        with new_scope(), stoppable_body(), hold_lease(store, LAYOUT, "run-1", SHORT_S) as lease:
            before(lease.epoch)
            threading.Event().wait(60)

    with pytest.raises(Stopped) as caught:
        run()
    return caught.value


def test_a_run_asked_to_stop_ends_as_by_a_signal_and_later_runs_do_not(any_store: Store):
    stopped = run_until_stopped(any_store, lambda _: ask_to_stop(any_store, LAYOUT, 1, "me\n@pc"))
    assert str(stopped) == "pipeline stop by me @pc"
    assert (read_beat(any_store).exit_code, read_beat(any_store).error) == (6, str(stopped))
    with new_scope(), stoppable_body(), hold_lease(any_store, LAYOUT, "run-2", SHORT_S):
        first = read_beat(any_store, 2).written_at
        assert wait_until(lambda: read_beat(any_store, 2).written_at != first)
        assert not ask_to_stop(any_store, LAYOUT, 1, "again")
    assert read_beat(any_store, 2).exit_code == 0


@pytest.mark.parametrize("data", [b"", b"[]", b'{"by": 1}', b"{}"])
def test_a_stop_file_stops_the_run_whatever_its_content(data: bytes, tmp_path: Any):
    store = Store(str(tmp_path))
    assert "pipeline stop" in str(
        run_until_stopped(store, lambda epoch: store.put(LAYOUT.stop(epoch), data))
    )
