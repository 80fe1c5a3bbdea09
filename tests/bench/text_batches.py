"""MiniLM over passages, as text.py and gpu.py measure it, and batches of rows on the device."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from systems import Case

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.passages import passages, write_passages
from support.models.minilm import fetch_minilm

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Arrays, Limits

_COLUMNS = {"format": "parquet", "text_column": "text", "id_column": "id"}
_SLICES = 8
"""So many slices of texts lie on the device."""
Batch = dict[str, torch.Tensor]


def text_case(folder: Path, num_rows: int) -> Case:
    """Write passages below a folder; the model is MiniLM.

    Raises:
        Unreachable: It cannot be downloaded.
    """
    write_passages(folder / "texts" / "passages.parquet", passages(num_rows))
    return Case(folder, folder / "texts", num_rows, {"path": str(fetch_minilm())}, columns=_COLUMNS)


def batches_on_device(
    case: Case, config: PredictorConfig, num_slices: int
) -> tuple[list[Batch], dict[str, float]]:
    """Return batches as a run has them, and for texts `tokens_per_row`, without padding.

    Args:
        case: Rows; photos are one batch of noise.
        config: The model and its limits of a batch.
        num_slices: Into so many slices the run divided the rows.
    """
    device = torch.device("cuda" if config.num_gpus else "cpu")
    if not config.spec.input.counts_tokens:
        slots = config.spec.input.slots(config.limits_of_batch)
        noise = {
            name: torch.randint(0, 255, slot.shape, dtype=torch.uint8, device=device)
            for name, slot in slots.items()
        }
        return [noise], {}
    column = pq.read_table(case.inputs, columns=["text"]).column("text")
    size = -(-case.num_rows // num_slices)
    found: list[Batch] = []
    counts: list[int] = []
    for first in range(0, min(len(column), _SLICES * size), size):
        inputs = _prepared(config, column.slice(first, size))
        counts += inputs["num_tokens"].tolist()
        found += _batches(config, inputs, device)
    return found, {"tokens_per_row": round(float(np.mean(counts)), 1)}


def _prepared(config: PredictorConfig, texts: pa.ChunkedArray) -> Arrays:
    columns: dict[str, Any] = {TEXT: texts, **failure_columns([None] * len(texts))}
    seen = config.spec.input
    return seen.arrays(seen.prepare(pa.table(columns), {}, Limits(1 << 30, 1 << 30)))


def _batches(config: PredictorConfig, inputs: Arrays, device: torch.device) -> list[Batch]:
    seen, limits = config.spec.input, config.limits_of_batch
    slots = seen.slots(limits)
    views = {name: np.zeros(math.prod(slot.shape), slot.dtype) for name, slot in slots.items()}
    found = []
    for rows in seen.batches(inputs, np.arange(len(inputs["num_tokens"])), limits):
        shapes = seen.gather(inputs, rows, views)
        found.append(
            {
                name: torch.from_numpy(views[name][: math.prod(shape)].reshape(shape)).to(
                    device, copy=True
                )
                for name, shape in shapes.items()
            }
        )
    return found
