"""Say what a run would do, what is published, and what a past run reported; writes nothing.

Out: plain nested dicts, for `--json` and for render.render_document.
"""

from __future__ import annotations

import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.context import RunContext, RunOptions
from pipeline.drift import compare_with_before
from pipeline.errors import InfraError, JobError
from pipeline.estimate import estimate
from pipeline.hive import restore
from pipeline.job import Job
from pipeline.layout import WHOLE_OUTPUT, Layout, new_run_id
from pipeline.manifest import Manifest, Part, current_manifest, list_partitions, locate
from pipeline.model import ModelSpec
from pipeline.past_runs import Recipe, find_past_run
from pipeline.plan import Plan
from pipeline.plan_file import adopt_plan
from pipeline.prepare import prepare
from pipeline.record import RunRecord
from pipeline.report import REPORT_VERSION, Report
from pipeline.schema import LABEL, MESSAGE, ROW_ID, SCORE, URI
from pipeline.sink import list_staged
from pipeline.storage import Store
from pipeline.tiling import done_slices
from pipeline.upkeep import history_numbers

_DIGEST_CHARS = 12
_EXAMPLES = 5
_TOP_LABELS = 10
_COLUMNS_SHOWN = 6
_BATCH_ROWS = 65_536
_READ_TRIES = 5
_NOTHING = "nothing: this is published already"


def describe_plan(job: Job, options: RunOptions) -> dict[str, Any]:
    """Say what a run of this job would do now.

    Raises:
        PipelineError: As the run itself would, before it starts anything.
    """
    store, layout = Store(job.sink.uri, job.sink.storage_options), Layout(job.sink.partition)
    record = RunRecord(new_run_id(dt.datetime.now(dt.UTC)), layout.name)
    plan, model = prepare(RunContext(job, options, store, layout, record))
    if store.stat(layout.plan(plan.fingerprint)):
        plan = adopt_plan(store, layout, plan)
    current = current_manifest(store, layout)
    step = _next_step(plan, store, layout, current, job.sink.partition_columns)
    return {
        "partition": layout.name,
        "fingerprint": plan.fingerprint[:_DIGEST_CHARS],
        **step,
        "estimate": _estimate(job, store, plan, model, step),
        "input": _input(plan, record.num_unreadable_shards),
        "model": _model(model, plan),
        "published_now": _published(current),
    }


def _next_step(
    plan: Plan,
    store: Store,
    layout: Layout,
    current: Manifest | None,
    partition_columns: Sequence[str],
) -> dict[str, Any]:
    is_published = current is not None and current.is_of(plan.fingerprint, partition_columns)
    staged = list_staged(store, layout.staging(plan.fingerprint))
    done = done_slices(plan, staged)
    action = "publish the first version" if current is None else f"replace version {current.number}"
    if is_published:
        action = _NOTHING
    elif done:
        action = f"resume, then {action}"
    num_rows = plan.num_rows
    rows_left = None if num_rows is None else num_rows - sum(key.num_rows for key in done)
    return {
        "a_run_would": action,
        "units": len(plan.units),
        "slices": None if num_rows is None else sum(1 for _ in plan.slices()),
        "slices_staged": len(done),
        "rows_left": 0 if is_published else rows_left,
    }


def _estimate(
    job: Job, store: Store, plan: Plan, model: ModelSpec, step: dict[str, Any]
) -> dict[str, Any]:
    wanted = Recipe(
        model.name, model.weights_sha256, model.runtime, model.precision, plan.batch_size
    )
    past = find_past_run(store, Layout(job.sink.partition).name, wanted.fits)
    price, is_published = job.run.price_per_node_hour, step["a_run_would"] == _NOTHING
    found = estimate(past, step["rows_left"], plan.num_rows, price, is_published=is_published)
    return asdict(found)


def _input(plan: Plan, num_unreadable: int) -> dict[str, Any]:
    return {
        "shards": plan.num_shards,
        "unreadable_shards": None if plan.num_rows is None else num_unreadable,
        "rows": plan.num_rows,
        **({} if plan.num_rows is not None else {"rows_are": "unknown until read"}),
        "bytes": plan.input_bytes,
        "ignored_files": len(plan.ignored),
        "first_ignored": list(plan.ignored[:_EXAMPLES]),
    }


def _model(model: ModelSpec, plan: Plan) -> dict[str, Any]:
    return {
        "name": model.name,
        "runtime": model.runtime,
        "precision": model.precision,
        "weights_sha256": (model.weights_sha256 or "")[:_DIGEST_CHARS] or None,
        "batch_size": plan.batch_size,
    }


def _published(manifest: Manifest | None) -> dict[str, Any] | None:
    if manifest is None:
        return None
    return {
        "version": manifest.number,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "rows": manifest.num_rows,
    }


def load_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> dict[str, Any]:
    """Read a stored report.json.

    Args:
        uri: The sink's root, a partition's folder, or a report.json itself.
        partition: Which partition; None takes the latest run of all.
        run_id: Which run; None takes the latest.
        storage_options: fsspec options.

    Raises:
        JobError: There is no such report, or a newer version of the pipeline wrote it.
        InfraError: What is there is not a report.
    """
    folder, _, name = uri.rpartition("/")
    if name == "report.json":
        store, path = Store(folder or ".", storage_options), name
    else:
        store, path = _find_report(uri, partition, run_id, storage_options)
    try:
        document = json.loads(store.read_bytes(path))
        if document["version"] > REPORT_VERSION:
            raise JobError(f"{store.url(path)}: written by a newer version; upgrade this one")
        document = Report.model_validate(document).model_dump(mode="json")
    except FileNotFoundError:
        raise JobError(f"{store.url(path)}: there is no such report") from None
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise InfraError(f"{store.url(path)}: not a report: {_first_line(error)}") from None
    is_known = name == "report.json" or document["slower_than_before"] is not None
    return dict(document) if is_known else compare_with_before(store, document)


def _find_report(
    uri: str, partition: str | None, run_id: str | None, storage_options: dict[str, Any]
) -> tuple[Store, str]:
    store, found = locate(uri, storage_options)
    if partition is None and found is not None and found.partition:
        partition = found.name
    prefix = f"reports/{partition}" if partition else "reports"
    paths = [
        PurePosixPath(file.path)
        for file in store.list_files(prefix)
        if file.path.endswith("/report.json")
    ]
    wanted = [path for path in paths if run_id in (None, path.parent.name)]
    if not wanted:
        what = f"of run {run_id}" if run_id else "of any run"
        raise JobError(f"{store.url(prefix)}: no report {what}; it has {len(paths)} reports")
    return store, str(max(wanted, key=lambda path: path.parent.name))


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def choose_partition(store: Store, found: Layout | None, partition: str | None) -> list[Layout]:
    """Return the partition that is named, or else all that the output has.

    Raises:
        JobError: None is published.
    """
    if partition is not None:
        return [Layout(None if partition == WHOLE_OUTPUT else partition)]
    if found is not None and found.partition:
        return [found]
    known = list_partitions(store)
    if not known:
        raise JobError(f"{store.url('')}: nothing is published there")
    return known


def describe_output(
    uri: str, partition: str | None, storage_options: dict[str, Any]
) -> dict[str, Any]:
    """Say what is published: of one partition, or a list of all and the newest one in full.

    Args:
        uri: The sink's root, or a partition's folder.
        partition: Which partition; None takes all there are.
        storage_options: fsspec options.

    Raises:
        JobError: Nothing is published there.
        InfraError: A part that the current manifest names is missing.
    """
    store, found = locate(uri, storage_options)
    layouts = choose_partition(store, found, partition)
    if len(layouts) == 1:
        return _describe_partition(store, layouts[0])
    manifests = [_require_current(store, layout) for layout in layouts]
    listed = sorted(zip(layouts, manifests, strict=True), key=lambda pair: pair[1].created_at)
    return {
        "partitions": [
            {"partition": manifest.partition, **(_published(manifest) or {})}
            for manifest in manifests
        ],
        "newest": _describe_partition(store, listed[-1][0]),
    }


def _require_current(store: Store, layout: Layout) -> Manifest:
    manifest = current_manifest(store, layout)
    if manifest is None:
        raise JobError(f"{store.url('')}: partition {layout.name} is not published")
    return manifest


def _describe_partition(store: Store, layout: Layout) -> dict[str, Any]:
    missing = ""
    for _ in range(_READ_TRIES):
        manifest = _require_current(store, layout)
        try:
            return _describe_version(store, layout, manifest)
        except FileNotFoundError as error:
            missing = str(error)  # replaced while it was read: the next round takes the new one
    raise InfraError(f"{store.url('')}: partition {layout.name}: a part is missing: {missing}")


def _describe_version(store: Store, layout: Layout, manifest: Manifest) -> dict[str, Any]:
    first, hive = manifest.parts[0], manifest.partition_columns
    with store.open(first.path) as handle:
        schema = restore(pq.ParquetFile(handle).schema_arrow.empty_table(), first.path, hive).schema
    has_labels = LABEL in schema.names
    return {
        "partition": layout.name,
        "version": manifest.number,
        "kind": manifest.kind,
        "restored_from": manifest.restored_from,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at,
        "fingerprint": manifest.fingerprint[:_DIGEST_CHARS],
        "rows": {
            "total": manifest.num_rows,
            "predicted": manifest.num_predicted,
            "quarantined": manifest.num_quarantined,
            "unreadable_shards": manifest.num_unreadable_shards,
        },
        "parts": [
            _sum_parts("predictions", manifest.parts),
            _sum_parts("quarantine", manifest.quarantine_parts),
        ],
        "model": manifest.model,
        "gates": list(manifest.gates),
        "schema": [{"column": field.name, "type": str(field.type)} for field in schema],
        "labels": _count(store, manifest.parts, LABEL, hive)[:_TOP_LABELS] if has_labels else [],
        "predictions": _first_rows(store, manifest.parts, _shown_columns(schema), hive),
        "reasons": _count(store, manifest.quarantine_parts, "reason"),
        "quarantine": _first_rows(store, manifest.quarantine_parts, [ROW_ID, "reason", MESSAGE]),
        "history": history_numbers(store, layout),
    }


def _shown_columns(schema: pa.Schema) -> list[str]:
    """The id and what a line has room for: label and score, or else the first plain columns."""
    if LABEL in schema.names and SCORE in schema.names:
        return [ROW_ID, LABEL, SCORE]
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    return [ROW_ID, *(name for name in plain if name not in (ROW_ID, URI))][:_COLUMNS_SHOWN]


def _sum_parts(kind: str, parts: Sequence[Part]) -> dict[str, Any]:
    size_bytes = sum(part.size_bytes for part in parts)
    return {"kind": kind, "parts": len(parts), "bytes": size_bytes}


def _count(
    store: Store, parts: Sequence[Part], column: str, hive: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Count the values of a text column, most frequent first, one batch in memory at a time."""
    counts: Counter[str] = Counter()
    for part in parts:
        for batch in _batches(store, part, [column], hive):
            for pair in pc.value_counts(batch.column(0)).to_pylist():
                counts[pair["values"]] += pair["counts"]
    return [{column: value, "rows": rows} for value, rows in counts.most_common()]


def _first_rows(
    store: Store, parts: Sequence[Part], columns: list[str], hive: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in parts:
        for batch in _batches(store, part, columns, hive, batch_rows=_EXAMPLES):
            rows += batch.to_pylist()
            if len(rows) >= _EXAMPLES:
                return rows[:_EXAMPLES]
    return rows


def _batches(
    store: Store,
    part: Part,
    columns: list[str],
    hive: Mapping[str, str] | None,
    *,
    batch_rows: int = _BATCH_ROWS,
) -> Iterator[pa.Table]:
    with store.open(part.path) as handle:
        file = pq.ParquetFile(handle)
        inside = [name for name in columns if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=batch_rows, columns=inside):
            yield restore(pa.Table.from_batches([batch]), part.path, hive or {}).select(columns)
