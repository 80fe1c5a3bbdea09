"""The lease of a partition: who works on it now.

It saves money, it is not what makes publishing safe: two runs that both believe in their lease
still meet at the create-once log entry. A lease is an epoch: taking over means making the next.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from pipeline.commit.layout import Layout
from pipeline.core.documents import known_fields
from pipeline.core.errors import PartitionBusy, PipelineError
from pipeline.process.failpoints import failpoint
from pipeline.process.life import current
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

log = logging.getLogger(__name__)
_RENEWALS_PER_TTL = 4
_MAX_WATCH_S = 60.0


@dataclass(frozen=True)
class Owner:
    """Who holds an epoch, with enough to see on the same machine whether its process still runs."""

    run_id: str
    host: str
    machine: str
    pid: int
    pid_started: float
    """By the monotonic clock."""
    ttl_s: float
    token: str


class Lease:
    """One epoch of one partition, renewed by a thread until released."""

    def __init__(self, store: Store, layout: Layout, epoch: int, owner: Owner) -> None:
        self._store, self._layout = store, layout
        self.epoch, self.owner = epoch, owner
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Make sure that no other run has taken over.

        Raises:
            PartitionBusy: A later epoch exists.
        """
        if _latest_epoch(self._store, self._layout) > self.epoch:
            raise PartitionBusy(
                f"partition {self._layout.name}: another run took over the lease of "
                f"{self.owner.run_id}; finished slices are kept"
            )

    def start(self) -> None:
        """Begin to renew."""
        self._beat(released=False)
        self._thread.start()

    def release(self) -> None:
        """Stop renewing; the next run may start at once."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            self._beat(released=True)
        except PipelineError as error:
            # No reason to hide how the run ended: the lease ends with this process, or its ttl.
            log.warning("lease of %s not released: %s", self._layout.name, error)

    def _renew(self) -> None:
        while not self._stop.wait(self.owner.ttl_s / _RENEWALS_PER_TTL):
            try:
                self._beat(released=False)
            except PipelineError as error:
                log.warning("lease of %s not renewed: %s", self._layout.name, error)

    def _beat(self, *, released: bool) -> None:
        beat = json.dumps({"run_id": self.owner.run_id, "released": released})
        self._store.put(self._layout.heartbeat(self.epoch), beat.encode())


@contextmanager
def hold_lease(store: Store, layout: Layout, run_id: str, ttl_s: float) -> Iterator[Lease]:
    """Hold the partition's lease for the body.

    Raises:
        PartitionBusy: A live run holds it.
    """
    lease = _acquire(store, layout, run_id, ttl_s)
    with current().closing(lease.release):
        try:
            failpoint("leased")
            lease.start()
            yield lease
        finally:
            lease.release()


def _acquire(store: Store, layout: Layout, run_id: str, ttl_s: float) -> Lease:
    epoch = _latest_epoch(store, layout)
    if epoch:
        _require_dead(store, layout, epoch)
    owner = _this_process(run_id, ttl_s)
    data = json.dumps(asdict(owner)).encode()
    if store.create_once(layout.lease(epoch + 1), data, owner.token) is CreateOutcome.OTHER:
        raise PartitionBusy(
            f"partition {layout.name}: another run took the lease at the same moment; "
            "wait for it to end"
        )
    return Lease(store, layout, epoch + 1, owner)


def _latest_epoch(store: Store, layout: Layout) -> int:
    names = (Path(file.path).name for file in store.list_files(layout.leases))
    return max((int(name[:10]) for name in names if name.endswith(".json")), default=0)


def release_lost(store: Store, layout: Layout, run_id: str) -> None:
    """Release the lease of a run whose process is gone, if it holds it."""
    epoch = _latest_epoch(store, layout)
    if epoch and (owner := _owner(store, layout, epoch)).run_id == run_id:
        Lease(store, layout, epoch, owner).release()


def _owner(store: Store, layout: Layout, epoch: int) -> Owner:
    return Owner(**known_fields(Owner, json.loads(store.read_bytes(layout.lease(epoch)))))


def _require_dead(store: Store, layout: Layout, epoch: int) -> None:
    owner = _owner(store, layout, epoch)
    beat = store.stat(layout.heartbeat(epoch)) or store.stat(layout.lease(epoch))
    if _is_released(store, layout, epoch) or _is_dead_here(owner):
        return
    age_s = (store.now() - beat.modified).total_seconds() if beat and beat.modified else owner.ttl_s
    if age_s < -owner.ttl_s and not _beats(store, layout, epoch, owner.ttl_s):
        return  # from before a clock was set back: only watching tells
    if age_s < owner.ttl_s:
        raise PartitionBusy(
            f"partition {layout.name}: run {owner.run_id} on {owner.host} (pid {owner.pid}) holds "
            f"it, renewed {max(0.0, age_s):.0f} s ago; wait for it, or {owner.ttl_s:.0f} s after "
            "its last renewal"
        )


def _beats(store: Store, layout: Layout, epoch: int, ttl_s: float) -> bool:
    """Watch for two renewals' time whether there is one; True if that would take too long."""
    watch_s = 2 * ttl_s / _RENEWALS_PER_TTL
    if watch_s > _MAX_WATCH_S:
        return True
    before = store.stat(layout.heartbeat(epoch))
    end = time.monotonic() + watch_s
    while time.monotonic() < end:
        time.sleep(min(1.0, watch_s / 8))
        if store.stat(layout.heartbeat(epoch)) != before:
            return True
    return False


def _is_released(store: Store, layout: Layout, epoch: int) -> bool:
    try:
        beat: dict[str, Any] = json.loads(store.read_bytes(layout.heartbeat(epoch)))
    except FileNotFoundError:
        return False
    return bool(beat["released"])


def _this_process(run_id: str, ttl_s: float) -> Owner:
    process = psutil.Process()
    return Owner(
        run_id=run_id,
        host=socket.gethostname(),
        machine=_machine(),
        pid=process.pid,
        pid_started=_started(process),
        ttl_s=ttl_s,
        token=uuid.uuid4().hex,
    )


def _machine() -> str:
    """Identify this boot of this machine and this namespace of process ids."""
    parts = [socket.gethostname(), str(psutil.boot_time())]
    try:
        parts = [
            socket.gethostname(),
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    except OSError:
        log.debug("no /proc here: the boot time stands for the boot id")
    return " ".join(parts)


def _started(process: psutil.Process) -> float:
    """Return when a process started, in ticks since the machine's start, if /proc says so.

    psutil's own answer moves when the clock is set: it adds a time of day.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return float(process.create_time())
    return float(stat.rpartition(")")[2].split()[19])


def _is_dead_here(owner: Owner) -> bool:
    """Tell that the owner was a process of this machine that has ended."""
    if owner.machine != _machine():
        return False
    try:
        process = psutil.Process(owner.pid)
        is_other = abs(_started(process) - owner.pid_started) > 1.0
        return bool(is_other or process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
