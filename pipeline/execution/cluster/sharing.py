"""One Ray for several runs: of this process one after the other, or of several at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from pipeline.execution import health
from pipeline.execution.caller import restore_process_state
from pipeline.process.life import current


@dataclass(frozen=True)
class RayPart:
    """The part of a Ray that one of several processes gets."""

    address: str | None = None
    """Of a Ray that another process has started; None: this one starts or finds it."""
    number: int = 1
    """How many there are of such parts."""
    is_embedded: bool = False
    """The other process has started it for these runs alone."""


@dataclass
class Sharing:
    """The Ray of several runs: what ends it, and whether the first of them has started it."""

    stack: contextlib.ExitStack
    part: RayPart
    is_embedded: bool = False


SHARING: ContextVar[Sharing | None] = ContextVar("SHARING", default=None)


@contextlib.contextmanager
def share_ray(part: RayPart | None = None) -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, leaving stops it.

    Args:
        part: They get a part of one that another process has started, and leave it running.
    """
    part = part or RayPart()
    current().part(health.ConnectedRay)  # which the runs find
    with restore_process_state(), contextlib.ExitStack() as stack:
        token = SHARING.set(Sharing(stack, part, part.is_embedded))
        try:
            yield
        finally:
            SHARING.reset(token)


def limit_data(total: Mapping[str, float], number: int) -> None:
    """Let Ray Data take no more than a part of a Ray, which it believes to have alone.

    Args:
        total: What the Ray has, by its own names.
        number: How many share it.
    """
    from ray.data import DataContext, ExecutionResources

    names = {"cpu": "CPU", "gpu": "GPU", "object_store_memory": "object_store_memory"}
    limits = {name: total.get(key, 0.0) / number for name, key in names.items()}
    DataContext.get_current().execution_options.resource_limits = ExecutionResources(**limits)
