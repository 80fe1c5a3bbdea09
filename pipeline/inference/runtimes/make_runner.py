"""Open a module with one of the runtimes, and set how float32 is multiplied."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.export import Exporter, Varying
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import (
    EXACT,
    TF32,
    Runner,
    Runtime,
    file_reason,
    math_of,
    missing_reason,
    refuse,
    shapes_reason,
)
from pipeline.models.onnx_module import OnnxModule

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    INT8: torch.float32,  # calibration uses the float32 model
}
_MAX_CHARS = 300
_math = EXACT
"""How this process multiplies float32 at present."""


def dtype_of(runtime: str, precision: str) -> torch.dtype:
    """Return the dtype that a module must have for a runtime."""
    return torch.float32 if runtime_of(runtime).converts_types else _DTYPES[precision]


def make_runner(
    runtime: str,
    precision: str,
    load: Callable[[], InferenceModule],
    example: Tensors,
    *,
    num_threads: int,
    varying: Varying | None = None,
    identity: str | None = None,
    calibrated: bytes | None = None,
) -> Runner:
    """Open a module with a runtime.

    Args:
        runtime: Name of the runtime.
        precision: One of the runtime's precisions.
        load: Returns the module on its device, of dtype `dtype_of`, in eval mode. Not called if
            the node cache has the exported form.
        example: A full batch on the device: input name -> (B, ...), in the shapes and dtypes of
            `Input.slots`, or a small batch if shapes vary; the values do not matter.
        varying: Axes whose sizes vary between batches; None: all batches are like `example`.
        identity: Text that identifies the module's outputs; None: its tensors are digested.
        calibrated: For int8, bytes of the checked ONNX model that runs instead.

    Raises:
        JobError: The runtime is not installed, or cannot run the module.
    """
    set_math(math_of(precision))
    chosen = runtime_of(runtime)
    is_on_gpu = any(tensor.is_cuda for tensor in example.values())
    refuse(chosen, precision, missing_reason(chosen, precision, is_on_gpu=is_on_gpu))
    if precision == INT8 and calibrated is None:
        raise JobError(f"model.precision {INT8!r}: there is no calibrated model to run")
    load = functools.cache(functools.partial(_then_set_math, load, precision))
    if not chosen.exports:
        load()  # its errors are not the runtime's
    exporter = Exporter(load, example, identity, chosen.packages, varying or {})
    refuse(chosen, precision, shapes_reason(chosen, is_varying=exporter.is_varying))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # exporters warn about each other
            if _has_file(chosen, exporter):
                return _open_file(chosen, exporter, precision, num_threads)
            return chosen.open(exporter, precision, num_threads, calibrated)
    except PipelineError:
        raise
    except Exception as error:
        first: BaseException = error
        while first.__cause__ is not None:  # exporters wrap the error in advice
            first = first.__cause__
        reason = clean_message(f"{type(first).__name__}: {first}", _MAX_CHARS)
        raise JobError(f"model.runtime = {runtime!r}: cannot run this model: {reason}") from error


def _then_set_math(load: Callable[[], InferenceModule], precision: str) -> InferenceModule:
    """Load a module, whose code may set torch's flags."""
    module = load()
    set_math(math_of(precision))
    return module


def _has_file(runtime: Runtime, exporter: Exporter) -> bool:
    if runtime.exports:
        return exporter.has_file()
    return isinstance(exporter.load().module, OnnxModule)  # it is loaded anyway


def _open_file(runtime: Runtime, exporter: Exporter, precision: str, num_threads: int) -> Runner:
    """Open a module that is an .onnx file; torch normalises its inputs.

    Raises:
        JobError: The runtime cannot run such files, or not in this precision.
    """
    refuse(runtime, precision, file_reason(runtime, precision))
    module = exporter.load()
    assert isinstance(module.module, OnnxModule), "has_file says so"
    is_static = runtime.open_file(module.module, exporter, precision, num_threads)
    return Runner(module.run, is_static)


def set_math(math: str) -> None:
    """Set how this process multiplies float32, by all of torch's flags, whatever was set before.

    By default convolutions use TF32. Older names of a flag, or a user's module, may have set some
    of the flags, so all are set, in this order.
    """
    global _math
    _math, allowed = math, math == TF32
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.fp32_precision = math  # type: ignore[attr-defined]
    # The older names raise if they are read after only the newer ones were set.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed
    torch.backends.cudnn.fp32_precision = math
    for backend in _backends():
        backend.fp32_precision = math


@contextlib.contextmanager
def exact_math() -> Iterator[None]:
    """Multiply float32 exactly in the body."""
    before = _math
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
