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
        InfraError: Torch sees more than Ray gave; with one line of what would be right.
    """
    if not num_gpus:
        os.environ[VISIBLE] = ""
        return
    import ray
    import torch

    from pipeline.inference.devices.accelerator import the_gpu

    num_seen = the_gpu().call(torch.cuda.device_count) if torch.cuda.is_available() else 0
    given = [
        str(gpu_id) for gpu_id in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    ]
    if reason := too_many_reason(given, num_seen):
        raise InfraError(reason)


def too_many_reason(given: Sequence[str], num_seen: int) -> str:
    """Return why an actor would compute on a GPU that is not its own, or ''.

    Args:
        given: What Ray gave; an old Ray may not tell.
        num_seen: How many devices torch sees.
    """
    if not given or num_seen <= len(given):
        return ""
    return (
        f"Ray gave this actor GPU {', '.join(given)}, and torch sees {num_seen} GPUs, of which "
        f"every actor would take the first: unset {_UNTOUCHED} where Ray is started"
    )
