"""Rows with several inputs, jobs over them, and the predictions of a plain loop."""

from __future__ import annotations

import datetime as dt
import io
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from pipeline.job.job import Job
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.planning.plan import Plan, make_plan
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store
from support.inputs.badfiles import encode
from support.models.tiny_tokenizer import make_tokenizer

SIZE_PX = models.SIZE_PX
INPUTS = {
    "photo": {"image_column": "photo"},
    "caption": {"text_column": "caption"},
    "weight": {"features": ["weight"]},
}
PAIR = {"left": {"image_column": "photo"}, "right": {"image_column": "other"}}
TITLES = {"title": {"text_column": "caption"}, "body": {"text_column": "body"}}
NOT_RESIZED = {"resize": "none", "mean": [0.0] * 3, "std": [1.0] * 3}
WORDS = ("red", "blue", "green", "slow", "fast", "cat", "dog")


def photo(seed: int, height_px: int = SIZE_PX, width_px: int = SIZE_PX) -> bytes:
    """A photo, usually of the model's size, so that its pixels reach the model as they are."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height_px, width_px, 3), np.uint8)
    return encode(Image.fromarray(pixels), "PNG")


def rows_of(number: int) -> dict[str, list[Any]]:
    dice = np.random.default_rng(7)
    texts = [" ".join(dice.choice(WORDS, dice.integers(1, 9))) for _ in range(2 * number)]
    return {
        "name": [f"r{row:03d}" for row in range(number)],
        "photo": [photo(row) for row in range(number)],
        "other": [photo(row + 1000) for row in range(number)],
        "caption": texts[:number],
        "body": texts[number:],
        "weight": [0.25 * (row + 1) for row in range(number)],
    }


def write_rows(folder: Path, columns: dict[str, list[Any]]) -> dict[str, Any]:
    """Write rows, and a tokenizer beside them; return the job's sections for these inputs."""
    (folder / "in").mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "in" / "a.parquet", row_group_size=16)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return {
        "source": {"uri": str(folder / "in"), "format": "parquet", "id_column": "name"},
        "text": {"tokenizer": str(folder / "tokenizer.json"), "max_tokens": 16},
        "transform": models.TRANSFORM,
        "sink": {"uri": str(folder / "out"), "partition": "date=${date}"},
    }


def job_of(sections: dict[str, Any], inputs: dict[str, Any], **model: Any) -> Job:
    source = {**sections["source"], "inputs": inputs}
    column_fields = {field for fields in inputs.values() for field in fields}
    left_out = [
        *(["text"] if "text_column" not in column_fields else []),
        *(["transform"] if not column_fields & {"image_column", "uri_column"} else []),
    ]
    document = {**sections, "source": source, "model": model}
    for name in left_out:
        document.pop(name)
    return parse_job(document, date=dt.date(2026, 11, 24), origin="test")


def planned(job: Job, batch_size: int = 8) -> tuple[Plan, PredictorConfig, pa.Table]:
    """The plan of a job, what its predictor is made of, and its rows."""
    inputs = list_inputs(job.source, max_extent_rows=1000)
    spec = resolve_model(job, ["models"]).fitted(inputs.fields)
    plan = make_plan(job, inputs, spec, batch_size=batch_size)
    reader = Reader(Store(inputs.root), job.source, plan.pass_through, plan.fields)
    tables = [
        table
        for unit in plan.units
        for _, _, table in read_slices(reader, unit, {key.start for key in unit.slices()})
    ]
    tokens = 64 if spec.input.counts_tokens else 0
    config = PredictorConfig(spec, batch_size, 0, 1, plan.pass_through, batch_tokens=tokens)
    return plan, config, pa.concat_tables(tables)


def pixels(data: bytes) -> torch.Tensor:
    """What the model sees of a photo: (1, 3, S, S)."""
    array = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    return torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255


def tokens(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask of a text alone, (1, L) each."""
    ids = torch.tensor([make_tokenizer().encode(text).ids])
    return ids, torch.ones_like(ids)


def loop(factory: str, columns: dict[str, list[Any]]) -> np.ndarray:
    """The outputs of a model over all rows, one by one: (N, ...)."""
    module = getattr(models, factory)().eval()
    results = []
    for row in zip(*columns.values(), strict=True):
        values = dict(zip(columns, row, strict=True))
        ids, mask = tokens(values["caption"])
        if factory == "several":
            weight = torch.tensor([[values["weight"]]])
            outputs = module(pixels(values["photo"]), weight, ids, mask)
        elif factory == "pair":
            outputs = module(pixels(values["photo"]), pixels(values["other"]))
        else:
            outputs = module(ids, mask, *tokens(values["body"]))
        results.append(outputs.detach().numpy()[0])
    return np.stack(results)
