"""Identify a process in stored documents, where numbers and host names are used again."""

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
