"""Measure the memory that a process takes for itself, and end one that takes too much.

Limits of the kernel do not help here: address space (RLIMIT_AS, RLIMIT_DATA) counts the arenas and
thread stacks that torch and Arrow only reserve. So the memory really in use is measured, often
enough for an allocation that is filled at full speed: it exceeds the limit by half a GiB at most.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
LOOK_S = 0.05
"""Interval between two measurements."""
_PRIVATE_FIELDS = ("RssAnon:", "VmSwap:")
_OF_WORKERS = 0.9
"""Share of a node's memory for all its workers together."""
_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class MemoryShare:
    """The share of its node's memory that a worker may take."""

    least_bytes: int
    """A lower limit of the share."""
    num_workers: int
    """Workers of the node."""

    @property
    def max_bytes(self) -> int:
        """Return the share of this node."""
        return max(self.least_bytes, int(_OF_WORKERS * node_bytes() / self.num_workers))


def taken_bytes(pid: int) -> int:
    """Return the memory of a process in bytes, without mapped files; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status") as status:
            return sum(
                1024 * int(line.split()[1]) for line in status if line.startswith(_PRIVATE_FIELDS)
            )
    except (OSError, ValueError):
        return _resident_bytes(pid)


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def node_bytes() -> int:
    """Return the memory in bytes of this machine, or of the container of this process."""
    import psutil

    num_bytes = int(psutil.virtual_memory().total)
    for path in _CGROUPS:
        with contextlib.suppress(OSError, ValueError):
            num_bytes = min(num_bytes, int(Path(path).read_text()))
    return num_bytes


def excess_message(max_bytes: int) -> str:
    """Return the message about a process that exceeded a limit."""
    return f"its process took more than {max_bytes // MIB:,} MiB"


def give_back() -> None:
    """Return unused memory to the system, if the C library can (glibc)."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # macOS and musl have no such function
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def at_most(max_bytes: int | None) -> Iterator[None]:
    """End this process, exit code 1, if it takes more during the body; None: no limit.

    A thread measures, so code that holds Python's lock while it allocates is not seen in time.
    """
    if max_bytes is None:
        yield
        return
    done = threading.Event()
    watching = threading.Thread(target=_watch, args=(max_bytes, done), daemon=True)
    watching.start()
    try:
        yield
    finally:
        done.set()
        watching.join()


def _watch(max_bytes: int, done: threading.Event) -> None:
    while not done.wait(LOOK_S):
        if taken_bytes(os.getpid()) > max_bytes:
            (sys.__stderr__ or sys.stderr).write(f"{excess_message(max_bytes)}: it ends\n")
            os._exit(1)
