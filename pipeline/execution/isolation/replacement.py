"""Replace a worker that keeps more and more memory: between slices, so that it costs no row.

Decoders leak over some files, allocators keep what they had once. What Ray ends for lack of memory
is ended in the middle of a slice, and the slice is then suspected; this comes before.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager

from pipeline.process.memory import MIB, give_back, taken_bytes

_OF_BOUND = 0.8
"""From this share of what a process may take it is replaced; at all of it it is ended."""
_GROWN = 1.5
"""Times what it took after its first slice: one that needs so much would not take less anew."""
_SEND_S = 0.5
"""For what Ray still sends of the slice before."""


class Replacement:
    """Counts the slices that this process works on, and ends it when it has grown."""

    def __init__(self) -> None:
        """Begin with a process that has done nothing."""
        self._changed = threading.Condition()
        self._num_inside = 0
        self._usual_bytes: int | None = None

    @contextlib.contextmanager
    def slice(self, max_bytes: int) -> Iterator[None]:
        """Work on a slice in the body; a process that has grown ends instead, with exit code 1.

        Ray starts another one, and gives it what was to be done here. Other slices that are in
        work in this process are awaited.

        Args:
            max_bytes: How much memory the process may take.
        """
        with self._changed:
            if self._has_grown(max_bytes):
                self._changed.wait_for(lambda: not self._num_inside)
                self._end(max_bytes)
            self._num_inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_inside -= 1
                if self._usual_bytes is None:
                    self._usual_bytes = taken_bytes(os.getpid())
                self._changed.notify_all()

    def _has_grown(self, max_bytes: int) -> bool:
        if self._usual_bytes is None:
            return False
        bound_bytes = max(_OF_BOUND * max_bytes, _GROWN * self._usual_bytes)
        if taken_bytes(os.getpid()) <= bound_bytes:
            return False
        give_back()
        return taken_bytes(os.getpid()) > bound_bytes

    def _end(self, max_bytes: int) -> None:
        taken = taken_bytes(os.getpid()) // MIB
        (sys.__stderr__ or sys.stderr).write(
            f"this worker keeps {taken:,} MiB of the {max_bytes // MIB:,} that it may take, "
            f"{(self._usual_bytes or 0) // MIB:,} after its first slice: it is replaced\n"
        )
        time.sleep(_SEND_S)
        os._exit(1)


_PROCESS = Replacement()
"""Of this process: tasks have nothing else that outlives them."""


def replaced_between_slices(max_bytes: int) -> AbstractContextManager[None]:
    """Work on a slice in the body, as `Replacement.slice` says of this process.

    A process that is no worker of Ray's would not come back, so it is left alone.
    """
    return _PROCESS.slice(max_bytes) if _is_worker() else contextlib.nullcontext()


def _is_worker() -> bool:
    ray = sys.modules.get("ray")  # a worker of Ray has imported it
    return (
        ray is not None
        and ray.is_initialized()
        and ray.get_runtime_context().get_task_id() is not None
    )
