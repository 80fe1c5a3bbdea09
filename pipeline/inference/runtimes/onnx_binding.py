"""Run a session of onnxruntime on torch tensors where they lie: no batch goes through the host."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

Tensors = Mapping[str, torch.Tensor]
_NUMPY_NAMES = {
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
    "tensor(float16)": "<f2",
    "tensor(bool)": "|b1",
    "tensor(uint8)": "|u1",
    "tensor(int8)": "|i1",
    "tensor(int32)": "<i4",
    "tensor(int64)": "<i8",
}


class _Held:
    """Memory of an OrtValue, as the protocols for arrays describe it."""

    def __init__(self, value: Any, device: torch.device) -> None:
        described = {
            "shape": tuple(value.shape()),
            "typestr": _NUMPY_NAMES[value.data_type()],
            "data": (value.data_ptr(), False),
            "version": 3,
        }
        name = "__cuda_array_interface__" if device.type == "cuda" else "__array_interface__"
        setattr(self, name, described)


def bound(
    session: Any, outputs: Sequence[str], device: torch.device, stream: Any = None
) -> Callable[[Tensors], list[torch.Tensor]]:
    """Return a function: tensors by the names of the inputs -> the outputs, on the same device.

    Args:
        session: An `onnxruntime.InferenceSession`.
        outputs: The names of the outputs to return, in that order.
        device: Where the tensors of a batch are, and where the session runs.
        stream: The CUDA stream of the session (`user_compute_stream`). The work on it begins after
            what the current stream has been given, and the current stream waits for it.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    if stream is not None:  # the streams wait for each other; the host need not wait for them
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    place = (device.type, device.index or 0)

    def run(batch: Tensors) -> list[torch.Tensor]:
        binding = session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in batch.items()}
        for name, tensor in held.items():  # by address: `held` keeps them alive
            numpy_type = torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
            binding.bind_input(name, *place, numpy_type, tuple(tensor.shape), tensor.data_ptr())
        for name in outputs:
            binding.bind_output(name, *place)
        with _joined(stream):
            session.run_with_iobinding(binding, options)
            # Copies: the session takes its memory back with the binding.
            return [_copy(value, device) for value in binding.get_outputs()]

    return run


def _copy(value: Any, device: torch.device) -> torch.Tensor:
    held: Any = _Held(value, device)
    held = held if device.type == "cuda" else np.asarray(held)
    return torch.as_tensor(held, device=device).clone()


@contextlib.contextmanager
def _joined(stream: Any) -> Iterator[None]:
    """Do work on a stream that is ordered after and before that of the current one."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)
