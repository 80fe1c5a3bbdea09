"""Tell the driver how far actors are within their slices: for the progress that people see only.

An actor counts the rows of its batches and sends at most one small message per second, and waits
for no answer. On this machine the channel is a pipe of the driver; elsewhere a Ray actor of no
CPUs, which the driver starts once a run has lasted some seconds. A lost message costs nothing: a
slice counts when it is committed, and then its messages are forgotten. Rows are counted by slice,
so that a second attempt, after an actor has crashed, does not count twice.
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
"""More actors tell less often: the board gets no more messages than so many a second."""
_LOOK_S = 5.0
_MOST_NOTES = 16
_ANSWER_S = 2.0
_READ_BYTES = 1 << 16
_RECORD = struct.Struct("<qqq")

Slice = tuple[int, int]
"""Unit and first row."""
Rows = Mapping[Slice, int]
Send = Callable[[Slice, int], object]


class Channel(Protocol):
    """The way to the driver; plain enough to be pickled."""

    def open(self) -> Send:
        """Return what sends, from an actor's process; it never waits and never raises."""
        ...


class Listener(Protocol):
    """The driver's end."""

    starts_after_s: float
    """So long after the first row is asked for `read` is not called."""

    @property
    def channel(self) -> Channel:
        """Return the way for the actors."""
        ...

    def read(self) -> Rows:
        """Return what has come: slice -> rows done of it."""
        ...

    def close(self) -> None:
        """Let the channel go."""
        ...


def listen(name: str, num_actors: int, *, is_local: bool) -> Listener | None:
    """Open what actors can tell to; None where that is not possible.

    Args:
        name: Unique to the run.
        num_actors: How many there may be.
        is_local: All of them are processes of this machine.
    """
    if not is_local:
        return BoardListener(name, num_actors)
    try:
        return PipeListener()
    except OSError:
        return None


# ---------------------------------------------------------------------------- in an actor


@dataclass
class _Now:
    """What this process works on."""

    send: Send | None = None
    key: Slice = (0, 0)
    num_rows: int = 0
    is_told: bool = True
    told_at_s: float = 0.0


_now = _Now()


def tell(channel: Channel | None) -> None:
    """Send what `count` counts in this process from now on; None sends nothing."""
    _now.send = None if channel is None else channel.open()


def begin(key: Slice) -> None:
    """Begin with the rows of a slice; what was not told of the one before is told now."""
    _flush()
    _now.key, _now.num_rows = key, 0


def count(num_rows: int) -> None:
    """Count rows that the model has done."""
    if _now.send is None:
        return
    _now.num_rows += num_rows
    _now.is_told = False
    if monotonic() - _now.told_at_s >= EVERY_S:
        _flush()


def _flush() -> None:
    if _now.send is not None and not _now.is_told:
        _now.is_told, _now.told_at_s = True, monotonic()
        _now.send(_now.key, _now.num_rows)


# ---------------------------------------------------------------------------- by a pipe


@dataclass(frozen=True)
class PipeChannel:
    """A pipe of a process on this machine, which processes of the same user may open."""

    pid: int
    descriptor: int

    def open(self) -> Send:
        """Open the pipe; where that cannot be done, nothing is sent."""
        try:
            path = f"/proc/{self.pid}/fd/{self.descriptor}"
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return _nowhere

        def send(key: Slice, num_rows: int) -> None:
            with contextlib.suppress(OSError):  # full, or the driver is gone
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
        """Return what came since the last call: slice -> rows done of it."""
        found: dict[Slice, int] = {}
        # A write of so few bytes is whole or not there. What is no record is of another program.
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
    """The last that actors wrote; lives in a Ray actor."""

    def __init__(self, most: int) -> None:
        """Take how many slices are kept."""
        self._most = most
        self._rows: dict[Slice, int] = {}

    def put(self, rows: Rows) -> None:
        """Note how many rows of slices are done."""
        for key, num_rows in rows.items():
            self._rows.pop(key, None)
            self._rows[key] = num_rows
        while len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]

    def read(self) -> Rows:
        """Return what is kept, so that an answer that came too late is no loss."""
        return dict(self._rows)


@dataclass(frozen=True)
class BoardChannel:
    """The name of a board; its driver may not have started it yet, or never do."""

    name: str
    every_s: float = EVERY_S

    def open(self) -> Send:
        """Return what notes the state; a thread looks for the board and writes to it."""
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
            except Exception:  # noqa: BLE001  # not started yet, or Ray is in trouble: later
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
    """Starts the board at the first call of `read`, and asks it."""

    starts_after_s = 5.0
    """A process more is nothing that a short run should wait for."""

    def __init__(self, name: str, num_actors: int) -> None:
        self.channel = BoardChannel(name, max(EVERY_S, num_actors / _ACTORS_PER_S))
        self._most = _MOST_NOTES * num_actors
        self._board: Any = None
        self._asked: Any = None

    def read(self) -> Rows:
        """Return what the board has; nothing where Ray does not answer in time."""
        import ray
        from ray.exceptions import GetTimeoutError

        try:
            if self._board is None:
                options = {"name": self.channel.name, "num_cpus": 0}
                self._board = ray.remote(**options)(Board).remote(self._most)
            self._asked = self._asked or self._board.read.remote()
            found: Rows = ray.get(self._asked, timeout=_ANSWER_S)
        except GetTimeoutError:  # it is still being started: asked again later
            return {}
        except Exception:  # noqa: BLE001  # it is for people only, and the run says what is wrong
            found = {}
        self._asked = None
        return found

    def close(self) -> None:
        """Let the board go."""
        self._board = self._asked = None


def _nowhere(key: Slice, num_rows: int) -> None:
    """Send nothing."""
