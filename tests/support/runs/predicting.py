"""Predictors of small models, rows for them, and checks of their predictions."""

from __future__ import annotations

import math
import uuid
from typing import Any

import models
import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipeline.core.arrays import images_to_arrow
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import CLASSIFY_FIELDS, staged_schema
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from support.runs.jobs import job_of

SIZE_PX = models.SIZE_PX
PASS_THROUGH = pa.schema([("n", pa.int64())])
BAD = Failure(Reason.TRUNCATED, "decode", "half of it", "e" * 64, 7)
BLACK, WHITE = 0, 255


class Convolved(nn.Module):
    """A small net with seeded weights: unlike the models of models.py, no answer is obvious."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                nn.Linear(32, len(models.LABELS)),
            )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


convolved = Convolved


def of_clips_too() -> nn.Module:
    """With weights of a convolution over time, which images do not pass through."""
    module = Convolved()
    module.clips = nn.Conv3d(3, 8, 2)
    return module


class Pooled(nn.Module):
    """A small net with seeded weights that takes images of any size."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
                nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, len(models.LABELS)),
            )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


pooled = Pooled


OUTPUTS = torch.tensor(
    [
        *([1.0, math.inf], [1.0, -math.inf], [math.nan, 1.0], [1.0, math.nan]),
        *([1.0, 1.0], [math.nan, math.nan], [0.0, -3e38]),
    ]
)


class Vectors(nn.Module):
    """Gives a row of OUTPUTS for each image: that of the number of its first pixel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OUTPUTS[x[:, 0, 0, 0].mul(255).round().long()]


class Numbers(Vectors):
    """Gives the same as two outputs."""

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
        outputs = super().forward(x)
        return {"a": outputs[:, 0], "b": outputs[:, 1]}


vectors = Vectors
numbers = Numbers


def predictor(
    factory: str, batch_size: int = 32, *, checks_rows: bool = False, **options: Any
) -> TorchEngine:
    """Of the same as `config_of`; makes batches of slices alone, unless it checks rows."""
    engine = TorchEngine(config_of(factory, batch_size, **options))
    engine._has_independent_rows = not checks_rows
    return engine


def config_of(
    factory: str,
    batch_size: int = 32,
    num_gpus: float = 0.0,
    transform: dict[str, Any] | None = None,
    limits: AgreementLimits | None = None,
    **model: Any,
) -> PredictorConfig:
    """Of a model that classifies, unless `model` says another task and sets its fields to None."""
    fields = {"factory": factory, "labels": models.LABELS, "top_k": 3, **model}
    job = job_of(
        {name: value for name, value in fields.items() if value is not None},
        transform={**models.TRANSFORM, **(transform or {})},
    )
    allowed = ["models", "support", "failing_models", "gpu_models"]
    return PredictorConfig(
        spec=resolve_model(job, allowed),
        batch_size=batch_size,
        num_gpus=num_gpus,
        num_threads=1,
        pass_through=PASS_THROUGH,
        limits=limits,
        run_id=uuid.uuid4().hex,  # one process of a node compares for a run
    )


def images(num_rows: int, seed: int = 0) -> np.ndarray:
    """Noise of different brightness and colour, neither nearly black nor nearly white."""
    rng = np.random.default_rng(seed)
    base = rng.integers(40, 200, (num_rows, 1, 1, 3))
    noise = rng.integers(-30, 31, (num_rows, SIZE_PX, SIZE_PX, 3))
    return (base + noise).astype(np.uint8)


def rows_of(pixels: np.ndarray, failures: list[Failure | None] | None = None) -> pa.Table:
    num_rows = len(pixels)
    return pa.table(
        {
            "row_id": [f"r{row}" for row in range(num_rows)],
            "uri": [f"/in/{row}" for row in range(num_rows)],
            "n": pa.array(range(num_rows), pa.int64()),
            "image": images_to_arrow(pixels),
            **failure_columns(failures or [None] * num_rows),
        }
    )


def predict(model: TorchEngine, rows: pa.Table) -> tuple[list[dict[str, Any]], Counters]:
    counters: Counters = {}
    predictions = model.predict(rows, counters)
    added = [*CLASSIFY_FIELDS, *model._config.spec.input.published_fields()]
    assert predictions.schema == staged_schema(list(PASS_THROUGH), added)
    predictions.validate(full=True)
    assert predictions.column("row_id").to_pylist() == rows.column("row_id").to_pylist()
    assert predictions.column("n").to_pylist() == rows.column("n").to_pylist()
    for stage in ("transfer", "predict"):
        entry = counters[stage]
        assert entry["rows_in"] == entry["rows_out"] + entry["rows_quarantined"]
    return predictions.to_pylist(), counters


def is_predicted(row: dict[str, Any]) -> bool:
    """A row has a whole prediction, or a whole failure and nothing else."""
    if row["error"] is None:
        assert row["label"] == row["top_k"][0]["label"]
        assert row["label_id"] == row["top_k"][0]["label_id"]
        assert row["score"] == row["top_k"][0]["score"]
        assert row["label"] == models.LABELS[row["label_id"]]
        assert row["error_stage"] is row["message"] is None
        return True
    assert row["label"] is row["label_id"] is row["score"] is row["top_k"] is None
    assert row["error_stage"]
    assert row["message"]
    return False


class Likely(nn.Module):
    """Probabilities, by softmax or sigmoid, of the small net's logits.

    Of images that are brighter than `from_level` on average it gives the logits themselves, and of
    nearly white ones nothing finite.
    """

    def __init__(self, function: str = "softmax", from_level: float = 1e9) -> None:
        super().__init__()
        self.net, self.function, self.from_level = Convolved(), function, from_level

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.net(x)
        scores = torch.softmax(logits, 1) if self.function == "softmax" else torch.sigmoid(logits)
        level = x.mean((1, 2, 3))[:, None]
        scores = torch.where(level > self.from_level, logits, scores)
        return torch.where(level > 0.98, torch.nan, scores)


def likely(function: str = "softmax", from_level: float = 1e9) -> nn.Module:
    return Likely(function, from_level)


class Impure(Convolved):
    """Adds another ramp at each call, or the mean of the batch: no function of a row."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.lacks_memory = of, of == "mean, without memory for the first row alone"
        self.num_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.net(x)
        if self.lacks_memory and len(outputs) == 1:
            self.lacks_memory = False
            raise torch.OutOfMemoryError("another slice holds it")
        if self.of == "single":  # as normalisation over a batch does in training
            return outputs / (len(outputs) - 1)
        if self.of == "several" and len(outputs) == 1:
            raise ValueError("one row")
        self.num_calls += 1
        ramp = self.num_calls * torch.linspace(0, 1, outputs.shape[1])  # random noise may agree
        return outputs + (ramp if self.of == "ramp" else outputs.mean(0))


def impure(of: str) -> nn.Module:
    return Impure(of)
