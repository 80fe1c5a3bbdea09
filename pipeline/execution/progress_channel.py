"""Bring the progress within slices from the actors to the driver, by a Ray actor without CPUs.

The driver starts it after some seconds of a run. Lost messages do no harm: a slice counts when it
is committed, and then its messages are dropped. The watchdog needs them, too: so it is started
whether the run shows its progress or not.
"""

from __future__ import annotations

import contextlib
import threading
from dataclasses import dataclass, field
from typing import Any

from pipeline.execution.cluster import in_flight
from pipeline.inference.slice_progress import EVERY_S, Channel, Rows, Send, Slice
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
    """The driver's end: a thread of it listens during the body, whether a display asks or not.

    That actors send something shows that the run gets on, however long a slice takes.
    """

    starts_after_s = 5.0
    """A short run should not wait for another process."""

    def __init__(self, run_id: str, num_actors: int) -> None:
        """Take the run, and how many actors may send."""
        every_s = max(EVERY_S, num_actors / _ACTORS_PER_S)
        self._name = f"pipeline-progress-{run_id}"
        self.channel: Channel = ProgressChannel(self._name, every_s)
        self.rows: Rows = {}
        """The newest counts."""
        self.actors = ""
        """What keeps actors from their work; empty if nothing is known to."""
        self._most = _MOST_NOTES * num_actors
        self._actor: Any = None
        self._asked: Any = None
        self._num_told = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="progress-listener", daemon=True)

    def __enter__(self) -> ProgressListener:
        """Listen from now on."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ask Ray nothing any more, and release the actor."""
        self._is_over.set()
        self._thread.join(2 * _ANSWER_S)
        self._actor = self._asked = None

    def _listen(self) -> None:
        pause_s = self.starts_after_s
        while not self._is_over.wait(pause_s):
            pause_s = EVERY_S
            self.read()

    def read(self) -> None:
        """Ask for the counts so far and for the actors, and note progress."""
        # Only for display and watchdog: the run itself reports errors.
        with contextlib.suppress(Exception):
            found, num_told = self._answer()
            self.rows = found
            if num_told != self._num_told:
                note_progress("rows or tokens within slices")
            self._num_told = num_told
        with contextlib.suppress(Exception):
            self.actors = in_flight.actors_in_trouble()

    def _answer(self) -> tuple[Rows, int]:
        """Return what the actor has; raises if Ray does not answer in time."""
        import ray
        from ray.exceptions import GetTimeoutError

        if self._actor is None:
            options = {"name": self._name, "num_cpus": 0}
            self._actor = ray.remote(**options)(ProgressActor).remote(self._most)
        self._asked = self._asked or self._actor.read.remote()
        asked, self._asked = self._asked, None
        try:
            found: tuple[Rows, int] = ray.get(asked, timeout=_ANSWER_S)
        except GetTimeoutError:  # it is still starting: wait for the same answer later
            self._asked = asked
            raise
        return found
