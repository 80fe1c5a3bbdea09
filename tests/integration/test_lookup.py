"""Rows that an earlier version knows pass no stage, whatever the input and who decodes."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import models
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from known_rows import KnownRows
from support.inputs import several_rows

from pipeline.commit.staging import StagingWriter, list_staged
from pipeline.core.figures.slice_figures import SliceFigures
from pipeline.core.rows.row_digests import input_hashes
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, ERROR, INPUT_HASH, ROW_ID
from pipeline.execution import local
from pipeline.execution.predictor_actor import ActorConfig
from pipeline.execution.stages import Preprocessing, preprocess_stage, writer_stage
from pipeline.execution.stream_parts import StreamParts, unit_reads
from pipeline.job.reading.loader import parse_job
from pipeline.process.memory import MemoryShare
from pipeline.sources.lookup import LookUp
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

NUM_ROWS, SLICE_ROWS = 40, 16
KNOWN = {*range(SLICE_ROWS), *range(SLICE_ROWS, NUM_ROWS, 3)}
"""All rows of a slice, and some of each of the others."""
POINTERS = [CARRIED_SOURCE, CARRIED_ROW]
FACTS = (INPUT_HASH, *POINTERS)
TIMEOUT_S = 60.0
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "image": (
        {"image_column": "photo"},
        {"factory": "models:colours", "labels": models.LABELS},
        ["text"],
    ),
    "text": (
        {"text_column": "caption"},
        {"factory": "models:mentions", "labels": models.LABELS},
        ["transform"],
    ),
    "features": (
        {"features": ["weight"]},
        {"factory": "models:sums", "task": "regress", "targets": ["total", "largest"]},
        ["transform", "text"],
    ),
    "several": (
        {"inputs": several_rows.INPUTS},
        {"factory": "models:several", "labels": models.LABELS},
        [],
    ),
}
"""The sections `source` and `model`, and those that the job has not."""


class Staged(NamedTuple):
    """What a run has staged."""

    rows: pa.Table
    figures: SliceFigures
    num_carried: int


class Case:
    """A job over rows of one kind of input."""

    def __init__(self, folder: Path, kind: str, decodes_in: str) -> None:
        columns = several_rows.rows_of(NUM_ROWS)
        columns["caption"] = [f"{text} {row}" for row, text in enumerate(columns["caption"])]
        sections = several_rows.write_rows(folder, columns)
        source, model, left_out = CASES[kind]
        document = {
            **sections,
            "source": {**sections["source"], **source, "pass_through": ["weight"]},
            "model": model,
            "run": {"slice_rows": SLICE_ROWS},
        }
        for name in left_out:
            document.pop(name)
        self.job = parse_job(document, date=dt.date(2026, 11, 24), origin="test")
        self.plan, self.config, self.rows = several_rows.planned(self.job, batch_size=1)
        self.hashes = input_hashes(self.rows, self.plan.fields.names).to_pylist()
        self.decodes_in, self.folder = decodes_in, folder

    def staged(self, name: str, lookup: LookUp | None) -> Staged:
        """Read, predict and stage all rows, as a run does it."""
        plan, run_id = self.plan, f"{self.folder.name}-{name}"
        store = Store(str(self.folder / name))
        facts = FACTS if lookup is not None else ()
        writer = StagingWriter(store, "staging", run_id, "zstd", {}, facts=facts)
        reader = Reader(Store(plan.source_root), self.job.source, plan.pass_through, plan.fields)
        units = {unit: [key.start for key in unit.slices()] for unit in plan.units}
        preprocessing = Preprocessing.of(self.job.source, self.config.spec.input, 1, plan.fields)
        in_actor = preprocessing if self.decodes_in == "actors" else None
        config = ActorConfig(
            replace(self.config, run_id=run_id),
            TIMEOUT_S,
            MemoryShare(2**32, 1),
            plan.fields,
            preprocessing=in_actor,
        )
        preprocess = None
        if preprocessing is not None and in_actor is None:
            preprocess = preprocess_stage(preprocessing, frozenset(), run_id, TIMEOUT_S)
        reads = unit_reads(reader, units, run_id, TIMEOUT_S, lookup)
        done = list(local.stream(StreamParts(reads, preprocess, config, writer_stage(writer))))
        parts = list_staged(store, "staging")
        tables = [pq.read_table(self.folder / name / parts[key].path) for key in sorted_keys(parts)]
        figures = sum((each.figures for each in done), SliceFigures())
        return Staged(pa.concat_tables(tables), figures, sum(each.num_carried for each in done))


def sorted_keys(parts: Any) -> list[Any]:
    return sorted(parts, key=lambda key: (key.unit, key.start))


@pytest.mark.parametrize(
    ("kind", "decodes_in"),
    [("image", "tasks"), ("image", "actors"), ("text", "tasks"), ("text", "actors"),
     ("features", "actors"), ("several", "tasks")],
)  # fmt: skip
def test_the_model_sees_the_rows_that_are_not_known(kind: str, decodes_in: str, tmp_path: Path):
    case = Case(tmp_path, kind, decodes_in)
    known = KnownRows.of([case.hashes[row] for row in sorted(KNOWN)])
    plain = case.staged("plain", None)
    assert not {*FACTS} & {*plain.rows.column_names}
    found = case.staged("found", LookUp(tuple(case.plan.fields.names), ((2, known),)))
    assert found.rows.drop_columns([*FACTS]).schema == plain.rows.schema
    assert found.rows.column(INPUT_HASH).to_pylist() == case.hashes
    assert found.num_carried == len(KNOWN)
    carried = iter(range(len(KNOWN)))
    kept = {ROW_ID, "uri", "weight"}
    for number, (row, computed) in enumerate(
        zip(found.rows.to_pylist(), plain.rows.to_pylist(), strict=True)
    ):
        pointers = [row.pop(name) for name in POINTERS]
        row.pop(INPUT_HASH)
        if number in KNOWN:
            assert pointers == [2, next(carried)]
            assert row == {name: computed[name] if name in kept else None for name in computed}
        else:
            assert pointers == [None, None]
            assert row == computed
    num_new = NUM_ROWS - len(KNOWN)
    for stage in ("predict", *case.config.spec.input.stage_names):
        assert found.figures.stage(stage).rows_in == num_new
    assert found.figures.stage("read").rows_out == NUM_ROWS
    assert found.figures.looked_up is not None
    assert found.figures.looked_up.num_known == len(KNOWN)

    broken = replace(known, error="the store cannot be reached")
    failed = case.staged("failed", LookUp(tuple(case.plan.fields.names), ((2, broken),)))
    assert failed.rows.drop_columns([*FACTS]).equals(plain.rows)
    assert failed.rows.column(CARRIED_ROW).null_count == NUM_ROWS
    assert failed.figures.looked_up is not None
    assert failed.figures.looked_up.num_failed == NUM_ROWS
    assert failed.num_carried == failed.rows.column(ERROR).drop_null().length() == 0
