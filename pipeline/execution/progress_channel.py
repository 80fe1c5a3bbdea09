"""Progress within long slices, from actors to the driver, through a Ray actor without CPUs.

It feeds the supervisor of the run and the progress display, and only for slices that take seconds:
shorter ones count when they are committed. Lost messages do no harm.
"""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from pipeline.execution.versions import connected_ray
from pipeline.process.liveness import note_progress, note_unfinished, tell_parent

EVERY_S = 5.0
_ANSWER_S = 2.0
_WHAT = "rows or tokens within slices"


class BeatCounter:
    """Counts signs of progress, and the finished rows and tokens of unfinished slices."""

    def __init__(self) -> None:
        """Start at 0."""
        self._num_beats = 0
        self._unfinished: dict[str, tuple[int, int]] = {}

    def beat(self, sender: str, num_rows: int, num_tokens: int) -> None:
        """Count a sign of progress; rows and tokens are those of the sender's slice."""
        self._num_beats += 1
        self._unfinished[sender] = (num_rows, num_tokens)

    def read(self) -> tuple[int, int, int]:
        """Return the count, and the rows and tokens of all unfinished slices."""
        slices = self._unfinished.values()
        return self._num_beats, sum(rows for rows, _ in slices), sum(tokens for _, tokens in slices)


class _Sender:
    """Notes progress in an actor; a thread tells the counter, so that nothing waits for Ray."""

    def __init__(self, run_id: str) -> None:
        self._name = _name(run_id)
        self._has_news = threading.Event()
        self._slice_from_s = monotonic()
        self._sender, self._num_rows, self._num_tokens = uuid.uuid4().hex, 0, 0
        self._is_counted = False
        """The counter has rows or tokens of this actor."""
        self._counter: Any = None
        """The counter, if this actor has started it; it lives as long as this reference."""

    def note(self, num_rows: int, num_tokens: int) -> None:
        """Note progress of rows and tokens."""
        self._num_rows += num_rows
        self._num_tokens += num_tokens
        self._has_news.set()

    def slice_began(self) -> None:
        """Forget the progress of the slice before."""
        self._slice_from_s = monotonic()
        self._num_rows = self._num_tokens = 0
        if not self._is_counted:
            self._has_news.clear()

    def run(self) -> None:
        """Tell the counter every few seconds."""
        pause = threading.Event()
        while not pause.wait(EVERY_S):
            self._has_news.wait()
            is_long = monotonic() - self._slice_from_s >= EVERY_S
            if is_long or self._is_counted:
                self._has_news.clear()
                self._is_counted = is_long
                with contextlib.suppress(Exception):  # the run itself reports a failed Ray
                    self._tell()

    def _tell(self) -> None:
        import ray

        try:
            counter = ray.get_actor(self._name)
        except ValueError:  # none was started, or its starter has ended
            options = {"name": self._name, "num_cpus": 0}
            counter = self._counter = ray.remote(**options)(BeatCounter).remote()
        counter.beat.remote(self._sender, self._num_rows, self._num_tokens)


def tell_of_slices(run_id: str) -> Callable[[], object]:
    """Tell the driver of a run about each `still_alive` of this process from now on.

    Returns:
        A function to call when a slice begins.
    """
    if connected_ray() is None:  # then this process is the driver
        tell_parent(of_life=lambda num_rows, num_tokens: note_progress(_WHAT))
        return lambda: None
    sender = _Sender(run_id)
    threading.Thread(target=sender.run, name="progress-sender", daemon=True).start()
    tell_parent(of_life=sender.note)
    return sender.slice_began


@contextlib.contextmanager
def listening(run_id: str) -> Iterator[None]:
    """Note progress of actors in the driver during the body."""
    is_over = threading.Event()
    arguments = (_name(run_id), is_over)
    thread = threading.Thread(target=_listen, args=arguments, name="progress-listener", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join(2 * _ANSWER_S)
        note_unfinished(0, 0)


def _listen(name: str, is_over: threading.Event) -> None:
    import ray

    before = 0
    while not is_over.wait(EVERY_S):
        with contextlib.suppress(Exception):  # no slice has taken long yet, or Ray has failed
            read = ray.get_actor(name).read.remote()
            num_beats, num_rows, num_tokens = ray.get(read, timeout=_ANSWER_S)
            note_unfinished(num_rows, num_tokens)
            if num_beats != before:
                before = num_beats
                note_progress(_WHAT)


def _name(run_id: str) -> str:
    return f"pipeline-progress-{run_id}"
