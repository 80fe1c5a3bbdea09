"""Report progress within slices from the actors to the driver, only for display.

An actor counts the rows of its batches, sends at most one small message per second, and does not
wait for an answer. On the driver's machine the channel is a pipe; elsewhere it is a Ray actor
without CPUs, which the driver starts after some seconds of a run. Lost messages do no harm: a slice
counts when it is committed, and then its messages are dropped. Rows are counted per slice, so that
a second attempt, after an actor has crashed, does not count twice.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, Protocol

EVERY_S = 1.0
_ACTORS_PER_S = 100
"""Most messages per second at the board: with more actors, each sends less often."""
_LOOK_S = 5.0
_MOST_NOTES = 16
_ANSWER_S = 2.0
_READ_BYTES = 1 << 16
_RECORD = struct.Struct("<qqq")

Slice = tuple[int, int]
"""Unit and first row of a slice."""
Rows = Mapping[Slice, int]
Send = Callable[[Slice, int], object]


class Channel(Protocol):
    """The sending end in an actor; can be pickled."""

    def open(self) -> Send:
        """Return the function that sends from an actor's process; it never waits or raises."""
        ...


class Listener(Protocol):
    """The driver's end."""

    starts_after_s: float
    """`read` is not called earlier than this after the first rows are requested."""

    @property
    def channel(self) -> Channel:
        """Return the channel for the actors."""
        ...

    def read(self) -> Rows:
        """Return the messages so far: slice -> its finished rows."""
        ...

    def close(self) -> None:
        """Close the channel."""
        ...


def listen(name: str, num_actors: int, *, is_local: bool) -> Listener | None:
    """Open a channel for the actors; None if that is not possible.

    Args:
        name: A name unique to the run.
        num_actors: Most actors of the run.
        is_local: Whether all actors run on this machine.
    """
    if not is_local:
        return BoardListener(name, num_actors)
    try:
        return PipeListener()
    except OSError:
        return None


# ---------------------------------------------------------------------------- in an actor


class _Now(threading.local):
    """The slice that this thread predicts, and its progress."""

    key: Slice = (0, 0)
    num_rows: int = 0
    is_told: bool = True
    told_at_s: float = 0.0


_now = _Now()
_send: Send | None = None


def tell(channel: Channel | None) -> None:
    """Send the counts of this process to a channel from now on; None: send nothing."""
    global _send
    _send = None if channel is None else channel.open()


def begin(key: Slice) -> None:
    """Begin a slice in this thread; send the unsent count of the one before."""
    _flush()
    _now.key, _now.num_rows = key, 0


def count(num_rows: int) -> None:
    """Count rows of this thread's slice that the model has finished."""
    if _send is None:
        return
    _now.num_rows += num_rows
    _now.is_told = False
    if monotonic() - _now.told_at_s >= EVERY_S:
        _flush()


def _flush() -> None:
    if _send is not None and not _now.is_told:
        _now.is_told, _now.told_at_s = True, monotonic()
        _send(_now.key, _now.num_rows)


# ---------------------------------------------------------------------------- by a pipe


@dataclass(frozen=True)
class PipeChannel:
    """A pipe of a process on this machine, which processes of the same user may open."""

    pid: int
    descriptor: int

    def open(self) -> Send:
        """Open the pipe; if that fails, nothing is sent."""
        try:
            path = f"/proc/{self.pid}/fd/{self.descriptor}"
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return _nowhere

        def send(key: Slice, num_rows: int) -> None:
            with contextlib.suppress(OSError):  # full, or the driver has exited
                os.write(descriptor, _RECORD.pack(*key, num_rows))

        return send


class PipeListener:
    """The driver's end of a pipe."""

    starts_after_s = 0.0

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        for end in (self._reader, self._writer):
            os.set_blocking(end, False)
        self.channel = PipeChannel(os.getpid(), self._writer)

    def read(self) -> Rows:
        """Return the messages since the last call: slice -> its finished rows."""
        found: dict[Slice, int] = {}
        # A write of so few bytes is atomic. Other bytes come from another program.
        with contextlib.suppress(BlockingIOError, struct.error):
            while True:
                data = os.read(self._reader, _READ_BYTES - _READ_BYTES % _RECORD.size)
                found |= {(unit, start): n for unit, start, n in _RECORD.iter_unpack(data)}
        return found

    def close(self) -> None:
        """Close both ends."""
        for descriptor in (self._reader, self._writer):
            os.close(descriptor)


# ---------------------------------------------------------------------------- by an actor


class Board:
    """The last counts of the actors; runs in a Ray actor."""

    def __init__(self, most: int) -> None:
        """Take the number of slices to keep."""
        self._most = most
        self._rows: dict[Slice, int] = {}

    def put(self, rows: Rows) -> None:
        """Note the finished rows of slices."""
        for key, num_rows in rows.items():
            self._rows.pop(key, None)
            self._rows[key] = num_rows
        while len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]

    def read(self) -> Rows:
        """Return all counts that are kept, so that a lost answer does no harm."""
        return dict(self._rows)


@dataclass(frozen=True)
class BoardChannel:
    """The name of a board, which the driver may start later or never."""

    name: str
    every_s: float = EVERY_S

    def open(self) -> Send:
        """Return a function that notes counts; a thread finds the board and sends them."""
        writer = _Writer(self)
        threading.Thread(target=writer.run, name="ticks", daemon=True).start()
        return writer.note


@dataclass
class _Writer:
    channel: BoardChannel
    _notes: dict[Slice, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_noted: threading.Event = field(default_factory=threading.Event)

    def note(self, key: Slice, num_rows: int) -> None:
        with self._lock:
            self._notes[key] = num_rows
            while len(self._notes) > _MOST_NOTES:  # not read for a while
                del self._notes[next(iter(self._notes))]
        self._is_noted.set()

    def run(self) -> None:
        board, pause = None, threading.Event()
        while True:
            pause.wait(self.channel.every_s)
            self._is_noted.wait()
            try:
                board = board or _find(self.channel.name)
            except Exception:  # noqa: BLE001  # the board is not there yet, or Ray fails: try later
                pause.wait(_LOOK_S)
                continue
            with self._lock:
                notes, self._notes = self._notes, {}
                self._is_noted.clear()
            with contextlib.suppress(Exception):
                board.put.remote(notes)


def _find(name: str) -> Any:
    import ray

    return ray.get_actor(name)


class BoardListener:
    """Starts the board at the first call of `read`, then asks it."""

    starts_after_s = 5.0
    """A short run should not wait for another process."""

    def __init__(self, name: str, num_actors: int) -> None:
        self.channel = BoardChannel(name, max(EVERY_S, num_actors / _ACTORS_PER_S))
        self._most = _MOST_NOTES * num_actors
        self._board: Any = None
        self._asked: Any = None

    def read(self) -> Rows:
        """Return the counts of the board; {} if Ray does not answer in time."""
        import ray
        from ray.exceptions import GetTimeoutError

        try:
            if self._board is None:
                options = {"name": self.channel.name, "num_cpus": 0}
                self._board = ray.remote(**options)(Board).remote(self._most)
            self._asked = self._asked or self._board.read.remote()
            found: Rows = ray.get(self._asked, timeout=_ANSWER_S)
        except GetTimeoutError:  # it is still starting: ask again later
            return {}
        except Exception:  # noqa: BLE001  # only for display; the run itself reports the error
            found = {}
        self._asked = None
        return found

    def close(self) -> None:
        """Release the board."""
        self._board = self._asked = None


def _nowhere(key: Slice, num_rows: int) -> None:
    """Send nothing."""
