"""Named points at which a test ends the process, so that every crash window can be entered.

`PIPELINE_FAILPOINT=name:kill` kills the command with SIGKILL at the point `name`; `name:term`,
`name:int`, `name:hup` and `name:quit` send a signal to end, `name:stop` sends SIGSTOP, and
`name:raise` raises an error. `name:kill:3` acts at the third time. Unset, the cost is one
dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

from pipeline.core.environment import FAILPOINT
from pipeline.process.liveness import note_progress
from pipeline.process.shared_notes import current_notes

_SIGNALS = {
    **{"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT},
    **{"hup": signal.SIGHUP, "quit": signal.SIGQUIT},
    "stop": signal.SIGSTOP,
}
_reached: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Mark a step of a run by name; the step counts as progress."""
    note_progress(name)
    failpoint_quiet(name)


def failpoint_quiet(name: str) -> None:
    """Mark a point that does not count as progress: the thread of the lease reaches it, too."""
    wanted = os.environ.get(FAILPOINT)
    if wanted is None:
        return
    target, _, rest = wanted.partition(":")
    action, _, nth = rest.partition(":")
    if target != name:
        return
    _reached[name] += 1
    if _reached[name] != int(nth or 1):
        return
    if action == "kill" and current_notes() is not None:  # all of the command, its parent first
        os.kill(os.getppid(), signal.SIGKILL)
    if action in _SIGNALS:
        os.kill(os.getpid(), _SIGNALS[action])
        return
    raise RuntimeError(f"failpoint {name}")
