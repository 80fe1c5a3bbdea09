"""Load a model onto its device: weights, runtime, and the buffer of a batch."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.core.errors import JobError
from pipeline.inference.model_store import fetch_model
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.base import Runner
from pipeline.inference.runtimes.export import Exporter, Varying
from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.opening import dtype_of, make_runner
from pipeline.models.spec import ModelSpec, PredictorConfig, load_pinned
from pipeline.preprocessing.model_input import Slot

_TRACED_ROWS, _TRACED_TOKENS = 2, 16
"""Sizes of axes that vary while a model is exported: not 0 or 1, which exporters take as fixed."""


def device_of(config: PredictorConfig) -> torch.device:
    """Return the device of a model.

    Raises:
        JobError: The config asks for a GPU, and torch finds none.
    """
    if config.num_gpus == 0:
        return torch.device("cpu")
    require_cuda(config.num_gpus, "this worker's")
    return torch.device("cuda")


def require_cuda(num_gpus: float, whose: str) -> None:
    """Check that torch can use a GPU here.

    Args:
        num_gpus: What the job asks for.
        whose: Whose torch this is, for the message.

    Raises:
        JobError: It sees none.
    """
    if not torch.cuda.is_available():
        raise JobError(
            f"resources.num_gpus = {num_gpus:g}: {whose} torch {torch.__version__} sees no CUDA "
            "device; install a CUDA build or set num_gpus to 0"
        )


def make_buffer(config: PredictorConfig, device: torch.device) -> Tensors:
    """Make the reused buffers of a batch, each (V,) on the host, pinned for a GPU."""
    return {
        name: torch.zeros(
            math.prod(slot.shape),
            dtype=getattr(torch, slot.dtype),
            pin_memory=device.type == "cuda",
        )
        for name, slot in config.spec.input.slots(config.limits_of_batch).items()
    }


def example_batch(config: PredictorConfig, device: torch.device) -> tuple[Tensors, Varying]:
    """Return a batch as runtimes are opened with, each (B, ...), and which axes of it vary.

    The values are ones: a mask of zeros would hide all of a row.
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
    """Return a small shape for tensors whose shapes vary: exporters only trace it."""
    rows, *others = slot.shape
    if 1 in slot.varying and len(others) == 1:  # the tokens of a text
        others = [min(others[0], _TRACED_TOKENS)]
    return (min(rows, _TRACED_ROWS) if 0 in slot.varying else rows, *others)


def load_runner(config: PredictorConfig, device: torch.device) -> Runner:
    """Load a model onto its device and open it with its runtime.

    Raises:
        JobError: The weights, the layer or the precision cannot be used.
    """
    example, varying = example_batch(config, device)
    return make_runner(
        config.spec.runtime,
        config.spec.precision,
        functools.partial(_load, config, device),
        example,
        varying=varying,
        num_threads=config.num_threads,
        identity=config.spec.identity,
        calibrated=_calibrated(config),
    )


def export(config: PredictorConfig) -> Path:
    """Return the path of the model as float32 ONNX, for batches of the config's size on the CPU."""
    torch.set_num_threads(config.num_threads)
    cpu = torch.device("cpu")
    spec = replace(config.spec, runtime="onnxruntime", precision="fp32")
    module = _load(replace(config, spec=spec), cpu)
    example, varying = example_batch(config, cpu)
    return Exporter(lambda: module, example, None, varying=varying).onnx()


def _load(config: PredictorConfig, device: torch.device) -> InferenceModule:
    spec = config.spec
    kind = dtype_of(spec.runtime, spec.precision)
    module = load_pinned(config)
    choose_attention(module, spec, device)
    module = module.to(device, kind)
    # torch's stubs of Module.to do not know memory_format.
    module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        args = f" {json.dumps(dict(spec.args), sort_keys=True)}" if spec.args else ""
        identity = f"{spec.name} {spec.code_sha256}{args}"
        inner = InferenceModule(module, spec.input, kind, spec.layer, identity)
    except AttributeError:
        names = [name for name, _ in module.named_children()]
        raise JobError(
            f"model.layer = {spec.layer!r}: {spec.name} has no such submodule; "
            f"at the top it has {', '.join(names) or 'none'}"
        ) from None
    return inner.to(device).eval()


def choose_attention(module: torch.nn.Module, spec: ModelSpec, device: torch.device) -> None:
    """Let encoders of a model directory take SDPA where torch itself runs them on a GPU.

    Exporters keep the attention that all their runtimes can run, and the CPU what it always had.
    """
    if spec.directory is None or device.type != "cuda" or runtime_of(spec.runtime).exports:
        return
    from pipeline.models.directories.loading import use_sdpa

    use_sdpa(module)


def _calibrated(config: PredictorConfig) -> bytes | None:
    if config.spec.precision != INT8:
        return None
    return fetch_model(config.models, config.spec.artefact_sha256)
