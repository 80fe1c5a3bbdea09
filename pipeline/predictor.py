"""The model: uint8 images of a slice in, predictions and reasons out.

The same code runs on CPU and GPU. Normalisation happens here, on the device. A failing batch is
split until the rows at fault are found; out of memory halves the batch and is remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.errors import JobError
from pipeline.model import ModelSpec, PredictorConfig, load_module
from pipeline.schema import (
    ERROR,
    IMAGE,
    LABEL,
    LABEL_ID,
    ROW_ID,
    SCORE,
    TOP_K,
    URI,
    Failure,
    Reason,
    failure_columns,
    failures_of,
    images_from_arrow,
    staged_schema,
)
from pipeline.stats import Counters, StageCounters, add

STAGE = "predict"
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


@dataclass
class _Scores:
    """Top-k of the rows of a slice; rows without a prediction keep zeros."""

    values: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int32]


class Predictor:
    """Holds one model on one device."""

    def __init__(self, config: PredictorConfig) -> None:
        """Load the model onto its device.

        Raises:
            JobError: The weights, the device or the precision cannot be used.
        """
        self._config = config
        self._batch_size = config.batch_size
        self._device = _device(config)
        torch.set_num_threads(config.num_threads)
        module = load_module(config.spec).to(self._device, _DTYPES[config.spec.precision])
        self._model = _channels_last(module)
        self._scale, self._shift = _normalisation(config.spec, self._device)
        self._input = _input_buffer(config, self._device)

    def predict(self, rows: pa.Table, counters: Counters) -> pa.Table:
        """Predict the rows of one slice that have no error yet.

        Args:
            rows: The slice; `image` is fixed-size binary, uint8 (S, S, 3) RGB.
            counters: Gets the entries `transfer` and `predict`.

        Returns:
            The rows with the columns of `staged_schema`, in the same order; the image is gone.
        """
        spec = self._config.spec
        images = images_from_arrow(rows.column(IMAGE), spec.transform.size_px)
        failures = failures_of(rows)
        todo = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        shape = (rows.num_rows, spec.top_k)
        scores = _Scores(np.zeros(shape, np.float32), np.zeros(shape, np.int32))
        timer = _Timer()
        position = 0
        while position < len(todo):
            batch = todo[position : position + self._batch_size]
            for index, failure in self._run(images, batch, scores, timer):
                failures[index] = failure
            position += len(batch)
        failed = sum(failures[index] is not None for index in todo)
        pixels = len(todo) * images[:1].nbytes
        add(counters, "transfer",
            StageCounters(len(todo), len(todo), 0, pixels, pixels, timer.transfer_s))  # fmt: skip
        add(counters, STAGE,
            StageCounters(len(todo), len(todo) - failed, failed, pixels, 0, timer.predict_s),
            )  # fmt: skip
        return self._to_table(rows, scores, failures)

    def _run(
        self,
        images: npt.NDArray[np.uint8],
        batch: npt.NDArray[np.intp],
        scores: _Scores,
        timer: _Timer,
    ) -> Iterator[tuple[int, Failure]]:
        """Run rows `batch`; yield the rows that cannot be predicted, found by splitting."""
        failure = self._try_forward(images, batch, scores, timer)
        if failure is None:
            finite = np.isfinite(scores.values[batch]).all(axis=1)
            for row in batch[~finite]:
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
        yield from self._run(images, batch[:half], scores, timer)
        yield from self._run(images, batch[half:], scores, timer)

    def _try_forward(
        self,
        images: npt.NDArray[np.uint8],
        batch: npt.NDArray[np.intp],
        scores: _Scores,
        timer: _Timer,
    ) -> Failure | None:
        """Predict rows `batch` into `scores`, or say why not.

        Nothing is tried again in here: the exception's frames still hold the batch's tensors.
        """
        try:
            scores.values[batch], scores.labels[batch] = self._forward(images, batch, timer)
        except Exception as error:  # noqa: BLE001  # whatever a user's model raises costs its row
            reason = Reason.OUT_OF_MEMORY if _is_out_of_memory(error) else Reason.MODEL_ERROR
            return Failure(reason, STAGE, f"{type(error).__name__}: {error}")
        return None

    def _forward(
        self, images: npt.NDArray[np.uint8], batch: npt.NDArray[np.intp], timer: _Timer
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
        """Return top-k scores and labels, both (B, k), of the rows `batch`."""
        spec = self._config.spec
        started = perf_counter()
        # The one copy of the pixels: out of Ray's read-only memory into a reused (pinned) buffer.
        staging = self._input[: len(batch)]
        np.take(images, batch, axis=0, out=staging.numpy())
        on_device = staging.to(self._device, non_blocking=True)
        transferred = perf_counter()
        timer.transfer_s += transferred - started
        with torch.inference_mode():
            # NHWC memory seen as NCHW is channels_last already: no transpose is made.
            x = on_device.permute(0, 3, 1, 2).to(torch.float32)
            x = torch.addcmul(self._shift, x, self._scale).to(_DTYPES[spec.precision])
            logits = self._model(x)
            self._check_output(logits, len(batch))
            top = torch.softmax(logits.float(), dim=1).topk(spec.top_k, dim=1)
            values = top.values.cpu().numpy()
            labels = top.indices.to(torch.int32).cpu().numpy()
        timer.predict_s += perf_counter() - transferred
        return values, labels

    def _check_output(self, logits: object, num_rows: int) -> None:
        want = (num_rows, len(self._config.spec.labels))
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        if found != want:
            raise ValueError(f"output is {found}, expected logits {want}, one per label")

    def _to_table(
        self, rows: pa.Table, scores: _Scores, failures: Sequence[Failure | None]
    ) -> pa.Table:
        ok = np.array([failure is None for failure in failures], bool)
        names = pa.array(self._config.spec.labels, pa.string())
        num_rows, top_k = scores.labels.shape
        flat = pa.array(scores.labels.reshape(-1))
        entries = pa.StructArray.from_arrays(
            [names.take(flat), flat, pa.array(scores.values.reshape(-1))],
            names=[LABEL, LABEL_ID, SCORE],
        )
        offsets = np.arange(0, (num_rows + 1) * top_k, top_k, dtype=np.int32)
        best = pa.array(scores.labels[:, 0], mask=~ok)
        columns = {name: rows.column(name) for name in (ROW_ID, URI)}
        columns |= {name: rows.column(name) for name in self._config.pass_through.names}
        columns[LABEL] = names.take(best)
        columns[LABEL_ID] = best
        columns[SCORE] = pa.array(scores.values[:, 0], mask=~ok)
        columns[TOP_K] = pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~ok))
        columns.update(failure_columns(failures))
        schema = staged_schema(list(self._config.pass_through))
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


def _normalisation(spec: ModelSpec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Fold /255, mean and std into x * scale + shift, both (1, 3, 1, 1) float32."""
    mean = torch.tensor(spec.transform.mean, device=device).view(1, 3, 1, 1)
    std = torch.tensor(spec.transform.std, device=device).view(1, 3, 1, 1)
    return 1.0 / (255.0 * std), -mean / std


def _input_buffer(config: PredictorConfig, device: torch.device) -> torch.Tensor:
    size = config.spec.transform.size_px
    shape = (config.batch_size, size, size, 3)
    return torch.empty(shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)
