"""One Ray for several runs of this process, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.execution import health
from pipeline.execution.caller import restore_process_state
from pipeline.process.life import current


@dataclass
class Sharing:
    """The Ray of several runs: what ends it, and whether the first of them has started it."""

    stack: contextlib.ExitStack
    is_embedded: bool = False


SHARING: ContextVar[Sharing | None] = ContextVar("SHARING", default=None)


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, leaving stops it."""
    current().part(health.ConnectedRay)  # which the runs find
    with restore_process_state(), contextlib.ExitStack() as stack:
        token = SHARING.set(Sharing(stack))
        try:
            yield
        finally:
            SHARING.reset(token)


def is_started() -> bool:
    """Tell whether an earlier run of the body of `share_ray` has started a Ray."""
    shared = SHARING.get()
    return shared is not None and shared.is_embedded
