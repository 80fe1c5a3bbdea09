"""Load a model onto its device, open it with its runtime, and make the buffers of its batches."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch

from pipeline.core.errors import JobError
from pipeline.inference.devices.accelerator import Gpu, the_gpu
from pipeline.inference.devices.device_errors import OutOfDeviceMemory, TooLarge
from pipeline.inference.hardware_facts import absence_here
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.export import Exporter, Varying
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
from pipeline.inference.runtimes.int8 import INT8, fetch_model
from pipeline.inference.runtimes.make_runner import dtype_of, make_runner
from pipeline.inference.runtimes.runtime import Runner
from pipeline.models.spec import ModelSpec, PredictorConfig, load_pinned
from pipeline.preprocessing.model_input import Slot
from pipeline.process.memory import give_back

T = TypeVar("T")
_IMAGE_DIMS = 4
_CPU = torch.device("cpu")
_GIB = 1 << 30
_TRACED_ROWS, _TRACED_TOKENS = 2, 16
"""Sizes of varying axes while a model is exported; exporters take 0 and 1 as fixed."""
_FREQUENCIES = "inv_freq"
_COMPUTES_IN_FP32 = "transformers."
"""This library computes with them in fp32 in any case; other modules may need one dtype."""


def gpu_of(num_gpus: float) -> Gpu | None:
    """Return the GPU of this process; None if it is to use the CPU.

    Args:
        num_gpus: The process's share of a GPU.

    Raises:
        JobError: It asks for a GPU, and torch finds none.
    """
    if num_gpus == 0:
        return None
    require_cuda(num_gpus, "this worker's")
    gpu = the_gpu()
    gpu.call(gpu.take, num_gpus)
    return gpu


def patiently(config: PredictorConfig, load: Callable[[], T]) -> T:
    """Load a model; retry a few times if its GPU lacks memory."""
    gpu = gpu_of(config.num_gpus)
    return load() if gpu is None else gpu.patiently(load)


def require_cuda(num_gpus: float, whose: str) -> None:
    """Check that torch can use a GPU here.

    Args:
        num_gpus: The GPUs of the job.
        whose: Whose torch this is, for the message.

    Raises:
        JobError: Torch sees no GPU.
    """
    if not torch.cuda.is_available():
        raise JobError(
            f"resources.num_gpus = {num_gpus:g}: {whose} torch {torch.__version__} sees no CUDA "
            f"device: {absence_here()}, or set num_gpus to 0"
        )


def make_buffer(config: PredictorConfig, gpu: Gpu | None = None) -> Tensors:
    """Return the reused buffers of a batch, each (V,) on the host, pinned for a GPU."""
    make = torch.zeros if gpu is None else gpu.pinned
    return {
        name: make(math.prod(slot.shape), dtype=getattr(torch, slot.dtype))
        for name, slot in config.spec.input.slots(config.limits_of_batch).items()
    }


def example_batch(config: PredictorConfig, device: torch.device) -> tuple[Tensors, Varying]:
    """Return the batch that runtimes are opened with, each (B, ...), and its varying axes.

    The values are ones, as a mask of zeros would hide the whole row.
    """
    slots = config.spec.input.slots(config.limits_of_batch)
    example = {
        name: torch.ones(
            _small(slot) if slot.varying else slot.shape,
            dtype=getattr(torch, slot.dtype),
            device=device,
        )
        for name, slot in slots.items()
    }
    return example, {name: slot.varying for name, slot in slots.items()}


def _small(slot: Slot) -> tuple[int, ...]:
    """Return a small shape for tensors of varying shapes, which exporters only trace."""
    rows, *others = slot.shape
    # Tokens of a text only: a clip of so few samples may be too short for the model.
    if 1 in slot.varying and len(others) == 1 and slot.dtype != "float32":
        others = [min(others[0], _TRACED_TOKENS)]
    return (min(rows, _TRACED_ROWS) if 0 in slot.varying else rows, *others)


def full_batch(slots: Mapping[str, Slot], rows: int, device: torch.device) -> Tensors:
    """Return a batch of ones in the slots' shapes, each (rows, ...)."""
    return {
        name: torch.ones((rows, *slot.shape[1:]), dtype=getattr(torch, slot.dtype), device=device)
        for name, slot in slots.items()
    }


def load_runner(config: PredictorConfig, gpu: Gpu | None = None) -> Runner:
    """Load a model onto its device and open it with its runtime.

    Raises:
        JobError: The weights, the layer or the precision cannot be used.
        OutOfDeviceMemory: The model does not fit into the memory of the GPU.
    """
    example, varying = example_batch(config, _CPU if gpu is None else gpu.device)
    return make_runner(
        config.spec.runtime,
        config.spec.precision,
        functools.partial(_load, config, gpu),
        example,
        varying=varying,
        num_threads=config.num_threads,
        identity=config.spec.identity,
        calibrated=fetch_model(config.models, config.spec.artefact_sha256)
        if config.spec.precision == INT8
        else None,
    )


def export(config: PredictorConfig) -> Path:
    """Export the model as float32 ONNX for the CPU, at the config's batch size; return the path."""
    torch.set_num_threads(config.num_threads)
    spec = replace(config.spec, runtime="onnxruntime", precision="fp32")
    module = _load(replace(config, spec=spec), None)
    example, varying = example_batch(config, _CPU)
    return Exporter(lambda: module, example, None, varying=varying).onnx()


def _load(config: PredictorConfig, gpu: Gpu | None) -> InferenceModule:
    spec = config.spec
    dtype = dtype_of(spec.runtime, spec.precision)
    module = load_pinned(config)
    choose_attention(module, spec, _CPU if gpu is None else gpu.device)
    if gpu is None:
        module = module.to(dtype)
    else:
        _move(module, spec, dtype, gpu)
        give_back()  # frees the weights on the host
    # Module.to refuses the weights of three-dimensional convolutions.
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == _IMAGE_DIMS:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    try:
        args = f" {json.dumps(dict(spec.args), sort_keys=True)}" if spec.args else ""
        identity = f"{spec.name} {spec.code_sha256}{args}"
        inner = InferenceModule(module, spec.input, dtype, spec.layer, identity)
    except AttributeError:
        names = [name for name, _ in module.named_children()]
        raise JobError(
            f"model.layer = {spec.layer!r}: {spec.name} has no such submodule; "
            f"at the top it has {', '.join(names) or 'none'}"
        ) from None
    return (inner if gpu is None else inner.to(gpu.device)).eval()


def _move(module: torch.nn.Module, spec: ModelSpec, dtype: torch.dtype, gpu: Gpu) -> None:
    tensors = [*module.parameters(), *module.buffers()]
    needed_bytes = sum(
        t.numel() * (dtype.itemsize if t.is_floating_point() else t.itemsize) for t in tensors
    )
    num_parameters = sum(parameter.numel() for parameter in module.parameters())
    free_bytes, total_bytes = gpu.memory_bytes()
    try:
        with exact_frequencies(module):
            module.to(gpu.device, dtype)
        return
    except Exception as error:
        if not gpu.lacks_memory(error):
            raise
    # Outside `except`: the frames of the exception hold tensors.
    raise (TooLarge if needed_bytes > total_bytes else OutOfDeviceMemory)(
        f"model {spec.name}: its {num_parameters:,} parameters take {needed_bytes / _GIB:.1f} GiB "
        f"in {spec.precision}, and of the {total_bytes / _GIB:.1f} GiB of {gpu.name} "
        f"{free_bytes / _GIB:.1f} GiB were free; use a lower model.precision, fewer actors per GPU "
        "or a larger card"
    )


def choose_attention(module: torch.nn.Module, spec: ModelSpec, device: torch.device) -> None:
    """Use SDPA in encoders of a model directory if torch itself runs them on a GPU.

    Exporters keep the attention that all their runtimes can run; on the CPU nothing changes.
    """
    if spec.directory is None or device.type != "cuda" or runtime_of(spec.runtime).exports:
        return
    from pipeline.models.directories.library import use_sdpa

    use_sdpa(module)


@contextlib.contextmanager
def exact_frequencies(module: torch.nn.Module) -> Iterator[None]:
    """Keep the rotary frequencies of a module in fp32 while the body casts and moves it.

    Rounded to bf16 they rotate distant tokens by wrong angles: of 2,048 tokens through a small
    encoder, the worst vector was about twice as far from its fp32 value.
    """
    kept = [
        (part, name, values)
        for part in module.modules()
        if type(part).__module__.startswith(_COMPUTES_IN_FP32)
        for name, values in part.named_buffers(recurse=False)
        if name.endswith(_FREQUENCIES)
    ]
    yield
    for part, name, values in kept:
        setattr(part, name, values.to(getattr(part, name).device))
