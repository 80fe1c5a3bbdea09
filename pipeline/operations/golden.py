"""`pipeline golden`: write rows of a job with their eager fp32 predictions.

It predicts on the CPU and without Ray: the reference for actors on any device.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, LABEL, ROW_ID, SCORE, TOP_K, file_name_of
from pipeline.execution.stages import Preprocessing
from pipeline.gates.golden_files import MAX_ROWS
from pipeline.inference.engines import open_engine
from pipeline.job.job import Job
from pipeline.job.reading.loader import Overrides
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks import make_task, task_class
from pipeline.operations.arguments import Date, JobLike, load_job, run_options
from pipeline.planning.plan import Plan
from pipeline.planning.sampling import sample_rows, sample_units
from pipeline.runs.builders import make_reader, plain_predictor_config
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.storage.store import Store

_SAMPLED_PER_ROW = 4
_THREADS = 1


def golden(
    job: JobLike,
    out: str,
    *,
    rows: int = 32,
    date: Date = None,
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
) -> dict[str, Any]:
    """Write golden rows, for `gates.golden`: rows with their eager fp32 predictions.

    Task `classify`: only rows whose best label leads by twice `gates.max_score_diff`, so that no
    precision changes the label; with as many different labels as possible.

    Args:
        job: A job, the path of a job file, or its sections as a mapping.
        out: The `.parquet` file to write.
        rows: Most rows to write.
        date: The value of `${date}`; None: today in UTC.
        overrides: Fields that override those of the job.
        allow_import: Prefixes of the modules that the job may name.

    Raises:
        JobError: The job is wrong, or none of the sampled rows qualifies.
    """
    loaded = load_job(job, date=date, overrides=overrides)
    return _write_golden(loaded, run_options(None, allow_import), rows, out)


def _write_golden(job: Job, options: RunOptions, num_rows: int, uri: str) -> dict[str, Any]:
    folder, _, name = uri.rpartition("/")
    if not name.endswith(".parquet") or not 0 < num_rows <= MAX_ROWS:
        raise JobError(f"--out {uri}: write a .parquet file with at most {MAX_ROWS} rows")
    run = RunContext.of(job, options).with_settled_source()
    job = run.job
    plan, model = prepare(run)
    if not task_class(model.task.kind).has_golden:
        raise JobError(
            f"golden: rows of task {model.task.kind!r} cannot be compared with a reference"
        )
    rows = _sample(job, plan, num_rows * _SAMPLED_PER_ROW)
    known = _predict(job, plan, _reference(model), rows)
    chosen = _choose(known, num_rows, 2 * job.gates.max_score_diff)
    if not chosen:
        raise JobError(
            f"none of {rows.num_rows} sampled rows has a label that leads by "
            f"{2 * job.gates.max_score_diff:g}, twice gates.max_score_diff"
        )
    golden = known.select([name for name in known.column_names if name != TOP_K])
    golden = golden.take(pa.array(chosen))
    data = _encode(golden)
    # With the options of the place from which the job reads golden rows, if it is set.
    place = job.gates.golden or job.sink
    Store(folder or ("/" if uri.startswith("/") else "."), place.storage_options).put(name, data)
    has_labels = LABEL in golden.column_names
    return {
        "uri": uri,
        "rows": golden.num_rows,
        "sampled": rows.num_rows,
        "labels": len(set(golden.column(LABEL).to_pylist())) if has_labels else None,
        "model": model.name,
        "bytes": len(data),
        "used_by": f"runs of jobs with gates.golden.uri: {uri}",
    }


def _encode(rows: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(rows, buffer, compression="zstd")
    return buffer.getvalue()


def _reference(model: ModelSpec) -> ModelSpec:
    plain = model.as_reference()
    task = plain.task
    return replace(plain, task=replace(task, top_k=max(1, min(2, len(task.labels)))))


def _sample(job: Job, plan: Plan, num_rows: int) -> pa.Table:
    reader = make_reader(job, plan)
    units, seed = sample_units(plan, num_rows)
    rows = sample_rows(reader, units, num_rows, seed) if units else None
    if rows is None or not rows.num_rows:
        raise JobError(f"source.uri = {job.source.uri}: it has no readable rows")
    return rows


def _predict(job: Job, plan: Plan, model: ModelSpec, rows: pa.Table) -> pa.Table:
    """Return the rows with a prediction: id, input, and the columns of the task."""
    batch_size = job.model.batch_size or plan.batch_size
    config = plain_predictor_config(plan, model, batch_size, _THREADS)
    preprocessing = Preprocessing.of(job.source, model.input, _THREADS, plan.fields)
    inputs = rows if preprocessing is None else preprocessing({}, rows)
    predicted = open_engine(config).predict(inputs, {})
    columns = {ROW_ID: rows.column(ROW_ID)}
    columns |= {file_name_of(name): rows.column(name) for name in plan.fields.names}
    task = make_task(model.task)
    names_of_task = {shown: name for name, shown in task.golden_names.items()}
    names = {name: names_of_task.get(name, name) for name in (*task.golden_columns(), SCORE, TOP_K)}
    columns |= {
        shown: predicted.column(name)
        for shown, name in names.items()
        if name in predicted.column_names
    }
    is_good = predicted.column(ERROR).is_null()
    return pa.table(columns).filter(is_good)


def _choose(known: pa.Table, num_rows: int, lead: float) -> list[int]:
    """Return the rows to keep, in order."""
    if LABEL not in known.column_names:
        return [*range(min(num_rows, known.num_rows))]
    leads = [_lead(top) for top in known.column(TOP_K).to_pylist()]
    clear = [row for row in range(known.num_rows) if leads[row] >= lead]
    return sorted(_by_turns(known.column(LABEL).to_pylist(), clear)[:num_rows])


def _lead(top: Sequence[dict[str, Any]]) -> float:
    second = top[1][SCORE] if len(top) > 1 else 0.0
    return float(np.float64(top[0][SCORE]) - second)


def _by_turns(labels: Sequence[str], rows: Sequence[int]) -> list[int]:
    """Order rows so that every label occurs once before any occurs twice."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append((seen[labels[row]], row))
        seen[labels[row]] += 1
    return [row for _, row in sorted(turns)]
