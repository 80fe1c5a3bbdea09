"""Which GPUs a process of Ray sees: those that Ray gave it, and no others."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pipeline.core.errors import InfraError

VISIBLE = "CUDA_VISIBLE_DEVICES"
_UNTOUCHED = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"
_CARD, _PART = "GPU-", "MIG-"

Given = TypeVar("Given")
Made = TypeVar("Made")


@contextlib.contextmanager
def no_gpus() -> Iterator[None]:
    """Hide the GPUs of the node from a task that has none.

    Code of the user that computes on a GPU where there is one would take half a GiB of memory on it
    in each decoder. Afterwards the process is as before: it may get a GPU for its next task.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def without_gpus(stage: Callable[[Given], Made]) -> Callable[[Given], Made]:
    """Return a stage that sees no GPU."""

    @functools.wraps(stage)
    def hidden(block: Given) -> Made:
        with no_gpus():
            return stage(block)

    return hidden


def settle_gpus(num_gpus: float) -> None:
    """Let the process of an actor see the GPU that Ray gave it, and none if it gave none.

    Raises:
        InfraError: Torch sees others than Ray gave; with one line of what would be right.
    """
    if not num_gpus:
        os.environ[VISIBLE] = ""
        return
    import ray
    import torch

    from pipeline.inference.devices.accelerator import the_gpu

    seen = the_gpu().call(_seen) if torch.cuda.is_available() else []
    given = [str(each) for each in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])]
    if seen and (reason := mismatch(given, os.environ.get(VISIBLE), seen)):
        raise InfraError(reason)


def _seen() -> list[str]:
    import torch

    cards = range(torch.cuda.device_count())
    return [str(getattr(torch.cuda.get_device_properties(card), "uuid", "")) for card in cards]


def mismatch(given: Sequence[str], visible: str | None, seen: Sequence[str]) -> str:
    """Return why the cards that torch sees are not those that Ray gave, or ''.

    Args:
        given: What Ray gave: numbers, or UUIDs of cards or of their parts (MIG).
        visible: `CUDA_VISIBLE_DEVICES` of this process; None: it is not set.
        seen: The UUIDs of the devices that torch sees, in order; '' if it does not tell one.
    """
    if not given:  # an old Ray may not tell
        return ""
    named = f"Ray gave this actor GPU {', '.join(given)}"
    if len(seen) > len(given):
        return (
            f"{named}, and torch sees {len(seen)} GPUs ({VISIBLE} is {visible!r}), of which every "
            f"actor would take the first: unset {_UNTOUCHED} where Ray is started"
        )
    if visible is not None and _listed(visible) != [*given]:
        return (
            f"{named}, and {VISIBLE} of its process is {visible!r}: another program has set it; "
            "start Ray where that names all GPUs of the node, and let nothing set it afterwards"
        )
    for wanted, found in zip(given, seen, strict=False):
        # Of a part CUDA may tell the UUID of its card; numbers are those of Ray's node.
        if wanted.startswith(_CARD) and found and not _is_of(wanted, found):
            return (
                f"{named}, and torch computes on {_CARD}{found.removeprefix(_CARD)}: start Ray "
                "where all GPUs of the node are visible"
            )
    return ""


def _listed(visible: str) -> list[str]:
    return [each.strip() for each in visible.split(",") if each.strip()]


def _is_of(wanted: str, found: str) -> bool:
    """Tell whether a UUID, of which the beginning is enough, is that of a card."""
    return found.removeprefix(_CARD).lower().startswith(wanted.removeprefix(_CARD).lower())
