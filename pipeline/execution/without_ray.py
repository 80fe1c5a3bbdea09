"""Lets the runs of a body use no Ray: one process does all their work, one slice after the other.

For tests, which start hundreds of small runs. No job file, no option of a command and no variable
of the environment chooses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

_IS_CHOSEN: ContextVar[bool] = ContextVar("without Ray", default=False)


@contextlib.contextmanager
def without_ray() -> Iterator[None]:
    """Let runs of the body that name no cluster do without Ray."""
    token = _IS_CHOSEN.set(True)
    try:
        yield
    finally:
        _IS_CHOSEN.reset(token)


def is_without_ray() -> bool:
    """Tell whether this is the body of `without_ray`."""
    return _IS_CHOSEN.get()
