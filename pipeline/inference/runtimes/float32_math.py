"""How exactly this process multiplies float32: all of torch's flags for it, by its one API.

Convolutions use TF32 unless they are told not to, and what a user's module or an older name of a
flag has set before is left behind in one place or another. So all of them are set, in this order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from pipeline.inference.runtimes.runtime import EXACT, TF32

_set = EXACT


def set_math(math: str) -> None:
    """Let this process multiply float32 so from now on, whatever was set before."""
    global _set
    _set, allowed = math, math == TF32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.fp32_precision = math  # type: ignore[attr-defined]
    # The older names, which raise when they are read after the newer ones alone were set.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.fp32_precision = math
    for backend in _backends():
        backend.fp32_precision = math


@contextlib.contextmanager
def exact_math() -> Iterator[None]:
    """Multiply float32 exactly in the body, and as before after it, also if it raises."""
    before = _set
    set_math(EXACT)
    try:
        yield
    finally:
        set_math(before)


def _backends() -> list[Any]:
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    named = [(cudnn, "conv"), (cudnn, "rnn"), (mkldnn, "matmul"), (mkldnn, "conv"), (mkldnn, "rnn")]
    backends = [torch.backends.cuda.matmul, *(getattr(owner, name, None) for owner, name in named)]
    return [backend for backend in backends if hasattr(backend, "fp32_precision")]
