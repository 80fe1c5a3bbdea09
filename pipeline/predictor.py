"""The model: uint8 images (or float features) of a slice in, predictions and reasons out.

The same code runs on CPU and GPU. Normalisation happens here, on the device. A failing batch is
split until the rows at fault are found; out of memory halves the batch and is remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.errors import JobError
from pipeline.model import ModelSpec, PredictorConfig, load_module
from pipeline.schema import (
    ERROR,
    FEATURES,
    IMAGE,
    ROW_ID,
    URI,
    Failure,
    Reason,
    failure_columns,
    failures_of,
    features_from_arrow,
    images_from_arrow,
    staged_schema,
)
from pipeline.stats import Counters, StageCounters, add
from pipeline.task import Arrays, make_task
from pipeline.transform import TransformSpec

STAGE = "predict"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Inputs = npt.NDArray[Any]
"""uint8 (N, S, S, 3), or float32 (N, F)."""
Rows = npt.NDArray[np.intp]
"""Which rows of a slice."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


class Predictor:
    """Holds one model on one device."""

    def __init__(self, config: PredictorConfig) -> None:
        """Load the model onto its device.

        Raises:
            JobError: The weights, the layer, the device or the precision cannot be used.
        """
        self._config = config
        self._batch_size = config.batch_size
        self._device = _device(config)
        self._dtype = _DTYPES[config.spec.precision]
        torch.set_num_threads(config.num_threads)
        module = load_module(config.spec).to(self._device, self._dtype)
        self._model = _channels_last(module)
        self._layer = _watch_layer(self._model, config.spec)
        self._task = make_task(config.spec.task)
        self._prepare = _make_prepare(config.spec.transform, self._device, self._dtype)
        self._buffer: torch.Tensor | None = None

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Predict the rows of one slice that have no error yet.

        Args:
            rows: The slice; `image` is fixed-size binary, uint8 (S, S, 3) RGB, or `features` a
                fixed-size list of float32.
            counters: Gets the entries `transfer` and `predict`.

        Returns:
            The rows with the columns of `staged_schema`, in the same order; the input is gone.
        """
        inputs = _read_inputs(rows, self._config.spec.transform)
        failures = failures_of(rows)
        todo = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        results: Arrays = {}
        timer = _Timer()
        position = 0
        while position < len(todo):
            batch = todo[position : position + self._batch_size]
            for index, failure in self._run(inputs, batch, results, timer):
                failures[index] = failure
            position += len(batch)
        failed = sum(failures[index] is not None for index in todo)
        num_rows, num_bytes = len(todo), len(todo) * inputs[:1].nbytes
        moved = StageCounters(num_rows, num_rows, 0, num_bytes, num_bytes, timer.transfer_s)
        add(counters, "transfer", moved)
        predicted = StageCounters(
            num_rows, num_rows - failed, failed, num_bytes, 0, timer.predict_s
        )
        add(counters, STAGE, predicted)
        return self._to_table(rows, results, failures)

    def _run(
        self, inputs: Inputs, batch: Rows, results: Arrays, timer: _Timer
    ) -> Iterator[tuple[int, Failure]]:
        """Run rows `batch`; yield the rows that cannot be predicted, found by splitting."""
        failure = self._try_forward(inputs, batch, results, timer)
        if failure is None:
            for row in batch[~_are_finite(results, batch)]:
                yield int(row), Failure(Reason.NON_FINITE, STAGE, "output is not finite")
            return
        if len(batch) == 1:
            yield int(batch[0]), failure
            return
        half = len(batch) // 2
        if failure.reason is Reason.OUT_OF_MEMORY:
            self._batch_size = min(self._batch_size, half)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        yield from self._run(inputs, batch[:half], results, timer)
        yield from self._run(inputs, batch[half:], results, timer)

    def _try_forward(
        self, inputs: Inputs, batch: Rows, results: Arrays, timer: _Timer
    ) -> Failure | None:
        """Predict rows `batch` into `results`, or say why not.

        Nothing is tried again in here: the exception's frames still hold the batch's tensors.
        """
        try:
            for name, values in self._forward(inputs, batch, timer).items():
                if name not in results:
                    results[name] = np.zeros((len(inputs), *values.shape[1:]), values.dtype)
                results[name][batch] = values
        except Exception as error:  # noqa: BLE001  # whatever a user's model raises costs its row
            reason = Reason.OUT_OF_MEMORY if _is_out_of_memory(error) else Reason.MODEL_ERROR
            return Failure(reason, STAGE, f"{type(error).__name__}: {error}")
        return None

    def _forward(self, inputs: Inputs, batch: Rows, timer: _Timer) -> Arrays:
        """Return what the task keeps of the rows `batch`, each array (B, ...)."""
        started = perf_counter()
        # The one copy of the input: out of Ray's read-only memory into a reused (pinned) buffer.
        staging = self._reuse_buffer(inputs)[: len(batch)]
        np.take(inputs, batch, axis=0, out=staging.numpy())
        on_device = staging.to(self._device, non_blocking=True)
        transferred = perf_counter()
        timer.transfer_s += transferred - started
        with torch.inference_mode():
            outputs = self._model(self._prepare(on_device))
            if self._layer is not None:
                outputs = self._layer.take()
            kept = self._task.reduce(outputs, len(batch))
            arrays = {name: values.cpu().numpy() for name, values in kept.items()}
        timer.predict_s += perf_counter() - transferred
        return arrays

    def _reuse_buffer(self, inputs: Inputs) -> torch.Tensor:
        if self._buffer is None:
            shape = (self._config.batch_size, *inputs.shape[1:])
            kind = torch.from_numpy(np.empty(0, inputs.dtype)).dtype
            self._buffer = torch.empty(shape, dtype=kind, pin_memory=self._device.type == "cuda")
        return self._buffer

    def _to_table(
        self, rows: pa.Table, results: Arrays, failures: Sequence[Failure | None]
    ) -> pa.Table:
        ok = np.array([failure is None for failure in failures], bool)
        fields = self._task.fields()
        columns = {name: rows.column(name) for name in (ROW_ID, URI)}
        columns |= {name: rows.column(name) for name in self._config.pass_through.names}
        columns |= (
            self._task.columns(results, ok)
            if results
            else {field.name: pa.nulls(rows.num_rows, field.type) for field in fields}
        )
        columns |= failure_columns(failures)
        schema = staged_schema(list(self._config.pass_through), fields)
        return pa.table({name: columns[name] for name in schema.names}).cast(schema)


@dataclass
class _Timer:
    """Busy seconds of one slice."""

    transfer_s: float = 0.0
    predict_s: float = 0.0


def _channels_last(module: torch.nn.Module) -> torch.nn.Module:
    # torch's stubs of Module.to do not know memory_format.
    converted: torch.nn.Module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return converted


def _device(config: PredictorConfig) -> torch.device:
    if config.num_gpus == 0:
        if config.spec.precision == "fp16":
            raise JobError("model.precision = 'fp16': needs a GPU; on the CPU use fp32 or bf16")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise JobError(
            f"resources.num_gpus = {config.num_gpus:g}: this worker's torch {torch.__version__} "
            "sees no CUDA device; install a CUDA build or set num_gpus to 0"
        )
    return torch.device("cuda")


def _read_inputs(rows: pa.Table, transform: TransformSpec | None) -> Inputs:
    """View the model's input: uint8 (N, S, S, 3), or float32 (N, F) where there are no images."""
    if transform is None:
        return features_from_arrow(rows.column(FEATURES))
    return images_from_arrow(rows.column(IMAGE), transform.size_px)


def _make_prepare(
    transform: TransformSpec | None, device: torch.device, dtype: torch.dtype
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what turns a batch on the device into the model's input."""
    if transform is None:
        return lambda features: features.to(dtype)
    mean = torch.tensor(transform.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(transform.std, device=device).view(1, 3, 1, 1)
    # /255, mean and std folded into x * scale + shift.
    scale, shift = 1.0 / (255.0 * std), -mean / std

    def normalise(images: torch.Tensor) -> torch.Tensor:
        # NHWC memory seen as NCHW is channels_last already: no transpose is made.
        x = images.permute(0, 3, 1, 2).to(torch.float32)
        return torch.addcmul(shift, x, scale).to(dtype)

    return normalise


class _Layer:
    """Catches what a submodule returns during a forward pass."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._caught: Any = None
        module.register_forward_hook(self._catch)

    def _catch(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        self._caught = output

    def take(self) -> Any:
        """Return what was caught, and let go of it."""
        caught, self._caught = self._caught, None
        return caught


def _watch_layer(module: torch.nn.Module, spec: ModelSpec) -> _Layer | None:
    if spec.layer is None:
        return None
    try:
        return _Layer(module.get_submodule(spec.layer))
    except AttributeError:
        names = [name for name, _ in module.named_children()]
        raise JobError(
            f"model.layer = {spec.layer!r}: {spec.name} has no such submodule; "
            f"at the top it has {', '.join(names) or 'none'}"
        ) from None


def _are_finite(results: Arrays, batch: Rows) -> npt.NDArray[np.bool_]:
    ok = np.ones(len(batch), bool)
    for values in results.values():
        if np.issubdtype(values.dtype, np.floating):
            ok &= np.isfinite(values[batch]).reshape(len(batch), -1).all(axis=1)
    return ok


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)
