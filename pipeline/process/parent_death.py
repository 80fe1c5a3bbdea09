"""Let a process end together with the process that started it, however that ends.

As a program, with nothing but Python's own modules, `parent_death.py PARENT COMMAND ARGUMENT...`
becomes another program that is tied to PARENT: a process number, or `raylet`. Without this, one of
Ray's agents lives on for a minute. Without a command it does nothing until its parent ends: a
raylet ends when its dashboard agent ends, and this takes the agent's place.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

RAYLET = "raylet"
_PR_SET_PDEATHSIG = 1
_LOOK_S = 1.0


def die_with(parent: int) -> None:
    """Let this process be killed when its parent ends.

    On Linux the kernel does it, also after the process becomes another program; elsewhere a thread
    checks once a second.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has already ended
            os._exit(1)
    else:
        threading.Thread(target=_await_end, args=(parent,), daemon=True).start()


def _await_end(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os.kill(os.getpid(), signal.SIGKILL)


def tied_to(parent: int | str, command: list[str]) -> list[str]:
    """Return a command that runs another command, or nothing, tied to its parent process."""
    return [sys.executable, "-I", "-S", __file__, str(parent), *command]


def main() -> None:
    """Become the named program; without one, do nothing."""
    parent, *command = sys.argv[1:]
    die_with(int(os.environ["RAY_RAYLET_PID"] if parent == RAYLET else parent))
    if command:
        os.execv(command[0], command)  # noqa: S606  # as Ray starts it
    while True:
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
