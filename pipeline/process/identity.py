"""Tell whether a process that is known by what it wrote still runs: pids and names come again."""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import psutil

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ProcessId:
    """A process, with enough to see on the same machine whether it still runs."""

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
        """Tell that it was a process of this machine that has ended; False if that is unknown."""
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
