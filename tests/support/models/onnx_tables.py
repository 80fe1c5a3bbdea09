"""Predict Parquet tables by .onnx files as a run does, without Ray."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.reading.loader import parse_job
from pipeline.runs.builders import make_reader, plain_predictor_config
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.sources.reader import read_slices


def predicted(folder: Path, file: Path, features: list[Any], **more: Any) -> pa.Table:
    """Return the rows of the table in `folder`, predicted by an .onnx file.

    Args:
        folder: Has Parquet shards.
        file: The file.
        features: `source.features`.
        more: Further sections; `model` and `source` are merged with those made here.
    """
    document = {
        **more,
        "source": {
            "uri": str(folder), "format": "parquet", "features": features, **more.get("source", {})
        },
        "model": {"path": str(file), **more.get("model", {})},
        "sink": {"uri": str(folder.with_name("out"))},
    }  # fmt: skip
    job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
    run = RunContext.of(job, RunOptions()).with_settled_source()
    plan, spec = prepare(run)
    predictor = TorchEngine(plain_predictor_config(plan, spec, 32, 1))
    reader, found = make_reader(run.job, plan), []
    for unit in plan.units:
        for _, _, rows in read_slices(reader, unit, {key.start for key in unit.slices()}):
            found.append(predictor.predict(rows, {}))
    return pa.concat_tables(found)
