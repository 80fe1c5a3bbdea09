"""Bring the progress within slices from the actors to the driver, by a Ray actor without CPUs.

The driver starts it after some seconds of a run. Lost messages do no harm: a slice counts when it
is committed, and then its messages are dropped.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

from pipeline.inference.slice_progress import EVERY_S, Rows, Send, Slice
from pipeline.process.liveness import note_progress

_ACTORS_PER_S = 100
"""Most messages per second at the actor: with more senders, each sends less often."""
_LOOK_S = 5.0
_MOST_NOTES = 16
_ANSWER_S = 2.0


class ProgressActor:
    """Keeps the last counts of the senders."""

    def __init__(self, most: int) -> None:
        """Take the number of slices to keep."""
        self._most = most
        self._rows: dict[Slice, int] = {}
        self._num_told = 0

    def put(self, rows: Rows) -> None:
        """Note the finished rows of slices."""
        self._num_told += 1
        for key, num_rows in rows.items():
            self._rows.pop(key, None)
            self._rows[key] = num_rows
        while len(self._rows) > self._most:
            del self._rows[next(iter(self._rows))]

    def read(self) -> tuple[Rows, int]:
        """Return all counts that are kept, so that a lost answer does no harm, and how often actors
        told some: within a long row the counts stay the same."""
        return dict(self._rows), self._num_told


@dataclass(frozen=True)
class ProgressChannel:
    """The name of a `ProgressActor`, which the driver may start later or never."""

    name: str
    every_s: float = EVERY_S

    def open(self) -> Send:
        """Return a function that notes counts; a thread finds the actor and sends them."""
        sender = _Sender(self)
        threading.Thread(target=sender.run, name="progress-sender", daemon=True).start()
        return sender.note


@dataclass
class _Sender:
    channel: ProgressChannel
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
        import ray

        actor, pause = None, threading.Event()
        while True:
            pause.wait(self.channel.every_s)
            self._is_noted.wait()
            try:
                actor = actor or ray.get_actor(self.channel.name)
            except Exception:  # noqa: BLE001  # it is not there yet, or Ray fails: try later
                pause.wait(_LOOK_S)
                continue
            with self._lock:
                notes, self._notes = self._notes, {}
                self._is_noted.clear()
            with contextlib.suppress(Exception):
                actor.put.remote(notes)


class ProgressListener:
    """The driver's end: starts the actor at the first call of `read`, then asks it."""

    starts_after_s = 5.0
    """`read` is not called earlier: a short run should not wait for another process."""

    def __init__(self, run_id: str, num_actors: int) -> None:
        """Take the run, and how many actors may send."""
        every_s = max(EVERY_S, num_actors / _ACTORS_PER_S)
        self.channel = ProgressChannel(f"pipeline-progress-{run_id}", every_s)
        self._most = _MOST_NOTES * num_actors
        self._actor: Any = None
        self._asked: Any = None
        self._num_told = 0

    def read(self) -> Rows:
        """Return the counts so far; {} if Ray does not answer in time.

        That actors told some shows that the run gets on, however long a slice takes.
        """
        import ray
        from ray.exceptions import GetTimeoutError

        found: Rows
        try:
            if self._actor is None:
                options = {"name": self.channel.name, "num_cpus": 0}
                self._actor = ray.remote(**options)(ProgressActor).remote(self._most)
            self._asked = self._asked or self._actor.read.remote()
            found, num_told = ray.get(self._asked, timeout=_ANSWER_S)
        except GetTimeoutError:  # it is still starting: ask again later
            return {}
        except Exception:  # noqa: BLE001  # only for display; the run itself reports the error
            found, num_told = {}, self._num_told
        if num_told != self._num_told:
            note_progress("rows or tokens within slices")
        self._asked, self._num_told = None, num_told
        return found

    def close(self) -> None:
        """Release the actor."""
        self._actor = self._asked = None
