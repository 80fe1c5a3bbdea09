"""The lease of a partition: who works on it now, and how far that run is.

A lease saves work; it does not make publishing safe: two runs that both believe in their lease
still meet at the create-once log entry. A lease is an epoch, and taking over creates the next one.

The holder renews a heartbeat, which shows anybody who can read the output what runs, where, how far
it is and how it ended.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import psutil

from pipeline.commit.layout import Layout, lease_epoch
from pipeline.core.documents import known_fields, sealed, unsealed
from pipeline.core.errors import PartitionBusy, PipelineError, Stopped
from pipeline.core.printable import clean_message
from pipeline.process.failpoints import failpoint
from pipeline.process.interrupts import as_ours, interrupt, reason
from pipeline.process.run_scope import current_scope
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessId:
    """A process, with all that is needed to see on the same machine whether it still runs."""

    host: str
    machine: str
    pid: int
    pid_started: float
    """By the monotonic clock."""

    @classmethod
    def current(cls) -> ProcessId:
        """Return this process."""
        process = psutil.Process()
        return cls(socket.gethostname(), _machine(), process.pid, _started(process))

    def has_ended(self) -> bool:
        """Tell whether it was a process of this machine and has ended; False if unknown."""
        if self.machine != _machine():
            return False
        try:
            process = psutil.Process(self.pid)
            is_other = abs(_started(process) - self.pid_started) > 1.0
            return bool(is_other or process.status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True


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
        log.debug("no /proc: using the boot time instead of the boot id")
    return " ".join(parts)


def _started(process: psutil.Process) -> float:
    """Return when a process started, in ticks since the boot if /proc has it.

    The answer of psutil changes when the clock is set, because it adds a time of day.
    """
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text()
    except OSError:
        return float(process.create_time())
    return float(stat.rpartition(")")[2].split()[19])


_RENEWALS_PER_TTL = 4
_MAX_WATCH_S = 60.0


Tell = Callable[[], Mapping[str, Any]]
"""Returns how far a run is, as fields of `Heartbeat`."""
_TYPES: dict[str, Any] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": int | float,
    "list[str]": list,
    "None": type(None),
}


@dataclass(frozen=True)
class Heartbeat:
    """One renewal of a lease. Unknown values are None or empty; times are ISO 8601 in UTC."""

    run_id: str = ""
    released: bool = False
    """The run has ended and given the lease back."""
    host: str = ""
    machine: str = ""
    pid: int = 0
    pid_started: float = 0.0
    ttl_s: float = 60.0
    written_at: str | None = None
    job: str | None = None
    """Name of the job file, without its suffix."""
    fingerprint: str | None = None
    attempt: int | None = None
    """Number of leases of this fingerprint in a row, this one included."""
    started_at: str | None = None
    phase: str | None = None
    rows: int | None = None
    rows_done: int | None = None
    """Rows of committed slices, those of earlier runs included."""
    rows_quarantined: int | None = None
    slices: int | None = None
    slices_done: int | None = None
    rows_per_s: float | None = None
    """Over the last minute."""
    eta_s: float | None = None
    cost: float | None = None
    """Cost so far, in the currency of `run.price_per_node_hour`."""
    exit_code: int | None = None
    """Set when the lease is released."""
    error: str | None = None
    failed_gates: list[str] | None = None

    @classmethod
    def from_json(cls, data: bytes) -> Heartbeat:
        """Read a heartbeat of any version; fields that cannot be read keep their default."""
        try:
            document = known_fields(cls, json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return cls()
        types = {field.name: str(field.type) for field in fields(cls)}
        return cls(**{
            name: value
            for name, value in document.items()
            if any(isinstance(value, _TYPES[type_name]) for type_name in types[name].split(" | "))
            and not (isinstance(value, float) and not math.isfinite(value))
        })  # fmt: skip

    @property
    def process(self) -> ProcessId:
        """Return the process that holds the lease."""
        return ProcessId(self.host, self.machine, self.pid, self.pid_started)


@dataclass(frozen=True)
class Owner(ProcessId):
    """Who holds an epoch."""

    run_id: str
    ttl_s: float
    token: str


class Lease:
    """One epoch of one partition, renewed by a thread until released."""

    def __init__(
        self,
        store: Store,
        layout: Layout,
        epoch: int,
        owner: Owner,
        tell: Tell = dict,
        before: Heartbeat | None = None,
    ) -> None:
        self._store, self._layout = store, layout
        self.epoch, self.owner = epoch, owner
        self._tell, self._before = tell, before or Heartbeat()
        self.is_of_run = True
        """False: a command that changes no version holds it, and the last run's heartbeat stays."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def check(self) -> None:
        """Check that no other run has taken over.

        Raises:
            PartitionBusy: A later epoch exists.
        """
        if latest_epoch(self._store, self._layout) > self.epoch:
            raise PartitionBusy(
                f"partition {self._layout.name}: another run took over the lease of "
                f"{self.owner.run_id}; finished slices are kept"
            )

    def start(self) -> None:
        """Start the thread that renews the lease."""
        self._beat()
        self._thread.start()

    def release(self, error: PipelineError | None = None) -> None:
        """Stop renewing; the next run may start at once.

        Args:
            error: The error that ended the run; None: it succeeded.
        """
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        ending: dict[str, Any] = {"exit_code": 0}
        if error is not None and self.is_of_run:
            ending = {"exit_code": error.exit_code, "error": clean_message(str(error))}
        elif self._before.run_id and not self.is_of_run:
            ending = asdict(self._before)
        try:
            self._beat(**{**ending, "released": True})
        except PipelineError as trouble:
            # The run's own error matters more; the lease ends with this process, or its ttl.
            log.warning("lease of %s not released: %s", self._layout.name, trouble)

    def _renew(self) -> None:
        while not self._stop.wait(self.owner.ttl_s / _RENEWALS_PER_TTL):
            for step in (self._beat, self._stop_if_asked):
                try:
                    step()
                except PipelineError as error:
                    log.warning("lease of %s not renewed: %s", self._layout.name, error)

    def _beat(self, **changes: Any) -> None:
        progress = self._read_progress()
        is_same = (
            progress.get("fingerprint") and progress["fingerprint"] == self._before.fingerprint
        )
        owner = {name: value for name, value in asdict(self.owner).items() if name != "token"}
        beat = {
            "attempt": 1 + ((self._before.attempt or 1) if is_same else 0),
            **progress,
            "released": False,
            **owner,
            "written_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
            **changes,
        }
        self._store.put(self._layout.heartbeat(self.epoch), json.dumps(beat).encode())

    def _read_progress(self) -> dict[str, Any]:
        try:
            return json.loads(json.dumps(dict(self._tell()), allow_nan=False))  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001  # unknown progress must not end the lease
            log.debug("lease of %s: no progress to report: %s", self._layout.name, error)
            return {}

    def _stop_if_asked(self) -> None:
        """End the run, as a signal does, if `ask_to_stop` was called for this epoch."""
        if reason() is not None:
            return
        try:
            asked = self._store.read_bytes(self._layout.stop(self.epoch))
        except FileNotFoundError:
            return
        interrupt(Stopped(f"pipeline stop{_by(asked)}"))


def _by(asked: bytes) -> str:
    """Return who asked a run to stop, as ` by NAME`; empty if unknown."""
    try:
        return f" by {clean_message(str(json.loads(asked)['by']))}"
    except (ValueError, TypeError, KeyError):
        return ""


def ask_to_stop(store: Store, layout: Layout, epoch: int, by: str) -> bool:
    """Ask the run that holds an epoch to stop; a run of a later epoch goes on.

    Returns:
        False if it was asked already.
    """
    token = uuid.uuid4().hex
    data = json.dumps({"by": by, "token": token}).encode()
    return store.create_once(layout.stop(epoch), data, token) is not CreateOutcome.OTHER


@contextmanager
def hold_lease(
    store: Store, layout: Layout, run_id: str, ttl_s: float, tell: Tell = dict
) -> Iterator[Lease]:
    """Hold the lease of a partition for the body; each renewal stores the progress of the run.

    Raises:
        PartitionBusy: Another live run holds it.
    """
    lease = _acquire(store, layout, run_id, ttl_s, tell)
    error: PipelineError | None = None
    with current_scope().closing(lambda: lease.release(reason() or Stopped("it was ended"))):
        try:
            failpoint("leased")
            lease.start()
            yield lease
        except BaseException as caught:
            error = as_ours(caught)
            raise
        finally:
            lease.release(error)


def _acquire(store: Store, layout: Layout, run_id: str, ttl_s: float, tell: Tell) -> Lease:
    epoch, before = latest_epoch(store, layout), None
    if epoch:
        before = read_heartbeat(store, layout, epoch)
        _require_dead(store, layout, epoch, before)
    process = asdict(ProcessId.current())
    owner = Owner(**process, run_id=run_id, ttl_s=ttl_s, token=uuid.uuid4().hex)
    data = sealed(asdict(owner))
    if store.create_once(layout.lease(epoch + 1), data, owner.token) is CreateOutcome.OTHER:
        raise PartitionBusy(
            f"partition {layout.name}: another run took the lease at the same moment; "
            "wait for it to end"
        )
    return Lease(store, layout, epoch + 1, owner, tell, before)


def latest_epoch(store: Store, layout: Layout) -> int:
    """Return the number of the last lease of a partition; 0 if there was none."""
    paths = {file.path for file in store.list_files(layout.leases)}
    epochs = (lease_epoch(path) for path in paths)
    return max((epoch for epoch in epochs if epoch and layout.lease(epoch) in paths), default=0)


def read_heartbeat(store: Store, layout: Layout, epoch: int) -> Heartbeat:
    """Return the last heartbeat of an epoch; an empty one if there is none."""
    try:
        return Heartbeat.from_json(store.read_bytes(layout.heartbeat(epoch)))
    except FileNotFoundError:
        return Heartbeat()


def release_lost(store: Store, layout: Layout, run_id: str, error: PipelineError) -> None:
    """Release the lease of a run whose process is gone, if that run holds it.

    Args:
        error: How it ended.
    """
    epoch = latest_epoch(store, layout)
    if not epoch:
        return
    heartbeat = read_heartbeat(store, layout, epoch)
    if (owner := _owner(store, layout, epoch, heartbeat)).run_id == run_id:
        Lease(store, layout, epoch, owner, lambda: asdict(heartbeat)).release(error)


def _owner(store: Store, layout: Layout, epoch: int, heartbeat: Heartbeat) -> Owner:
    """Return who holds an epoch; the heartbeat tells it if the lease is damaged."""
    path = layout.lease(epoch)
    try:
        return Owner(**known_fields(Owner, unsealed(store.read_bytes(path))))
    except (ValueError, TypeError, RecursionError) as error:
        log.warning(
            "%s: is damaged; its holder is taken from the heartbeat: %s", store.url(path), error
        )
    run_id = heartbeat.run_id or "unknown"
    return Owner(**asdict(heartbeat.process), run_id=run_id, ttl_s=heartbeat.ttl_s, token="")


def _require_dead(store: Store, layout: Layout, epoch: int, heartbeat: Heartbeat) -> None:
    owner = _owner(store, layout, epoch, heartbeat)
    if heartbeat.released or owner.has_ended():
        return
    beat = store.stat(layout.heartbeat(epoch)) or store.stat(layout.lease(epoch))
    age_s = (store.now() - beat.modified).total_seconds() if beat and beat.modified else owner.ttl_s
    if age_s < -owner.ttl_s and not _beats(store, layout, epoch, owner.ttl_s):
        return  # written before a clock was set back: only watching tells
    if age_s < owner.ttl_s:
        raise PartitionBusy(
            f"partition {layout.name}: run {owner.run_id} on {owner.host} (pid {owner.pid}) holds "
            f"it, renewed {max(0.0, age_s):.0f} s ago; wait for it, or {owner.ttl_s:.0f} s after "
            "its last renewal"
        )


def _beats(store: Store, layout: Layout, epoch: int, ttl_s: float) -> bool:
    """Watch for the time of two renewals whether one comes; True if that takes too long."""
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
