"""Publish staged slices: verify, judge, compact, commit."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.commit.lease import Lease
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks, compact_slices
from pipeline.commit.parts.part_file import DamagedPart
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.parts.partition_columns import compact_by_value
from pipeline.commit.parts.row_ids import (
    LabelledDuplicates,
    find_duplicates,
    hash_failed,
    read_hashes,
)
from pipeline.commit.publish import commit, sync_published_folder
from pipeline.commit.shard_table import About, known_shards, read_failed, write_shard_table
from pipeline.commit.staging import discard_staged, read_footer
from pipeline.core.errors import InfraError
from pipeline.core.failures import MAX_PER_RUN, SystematicFailure, common_cause, format_causes
from pipeline.core.hive_paths import partition_types
from pipeline.core.semantics import environment_versions, package_versions
from pipeline.core.slices import SliceKey
from pipeline.gates.earlier_partitions import Past, look_back
from pipeline.gates.gate import Figures
from pipeline.gates.judging import certain_failures, early_refusal, judge, needs_of
from pipeline.gates.results import GateResult, require_pass
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices, require_complete
from pipeline.process.failpoints import failpoint
from pipeline.reuse.finding import day_of
from pipeline.runs.context import RunContext
from pipeline.runs.resume import drop_damaged, require_checked
from pipeline.runs.work import Work, note_retried
from pipeline.sources.listing.inputs import describe_no_input
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store, StoredFile

_MIB = 2**20


def finish(
    run: RunContext,
    work: Work,
    plan: Plan,
    staged: Mapping[SliceKey, StoredFile],
    lease: Lease,
    tasks: RunTasks,
) -> Manifest:
    """Publish the staged slices of a plan.

    Args:
        work: The work of the run.
        plan: Its plan, with the choice that was made; the slices must tile it.
        staged: The winning staged part of every slice.
        lease: Our lease, checked before anything becomes visible.
        tasks: Runs a function for every tuple of arguments.

    Returns:
        The current manifest: the earlier one if a retry changed nothing.

    Raises:
        GateRefused: A gate refused; the published partition is unchanged.
        PartitionBusy: Another run took the lease over.
        PublishConflict: Another run published something different meanwhile.
        TooFewChecked: As `require_checked`.
        InfraError: Slices are missing, or were damaged and are deleted, or the store failed.
    """
    base = work.base
    with run.record.stage("publish") as published, _guarded(run, staged, lease, tasks):
        slices = require_complete(plan, staged)
        lease.check()
        duplicates = _account(run, slices, tasks)
        require_checked(run, work, slices)
        num_rows = run.record.num_planned
        note_retried(run, work)
        folder = run.layout.staging(plan.work)
        failed = partial(hash_failed, run.store, slices, duplicates, tasks)
        if base is not None and work.changes_nothing(run.record, failed):
            discard_staged(run.store, folder)
            return base
        results = _judge(run, plan, num_rows, base)
        causes = run.record.top_failures()
        require_pass(results, format_causes(causes, run.record.num_quarantined))
        failpoint("judged")
        number = base.number + 1 if base else 1
        compactor = _compactor(run, plan, number)
        compacted = _compact(run, plan, compactor, slices, duplicates, tasks)
        keys = _write_keys(run, work, compactor, compacted, [key for key, _ in slices])
        manifest = replace(_manifest(run, work, plan, number, compacted, results), keys=keys)
        _require_counted(manifest)
        failpoint("compacted")
        lease.check()
        current = commit(run.store, run.layout, manifest, compactor.folder)
        sync_published_folder(
            run.store, run.layout, current, run.job.sink.keep_versions, table=run.table
        )
        published.rows_in = published.rows_out = num_rows
        published.bytes_in = sum(file.size_bytes for _, file in slices)
        published.bytes_out = sum(part.size_bytes for part in manifest.all_parts)
        discard_staged(run.store, folder, compactor.folder)
    return current


@contextmanager
def _guarded(
    run: RunContext, staged: Mapping[SliceKey, StoredFile], lease: Lease, tasks: RunTasks
) -> Iterator[None]:
    """Delete damaged staged parts if the body fails; raise PartitionBusy if a run has taken over.

    Another run that has taken over explains missing parts: it deletes those that it published.
    """
    try:
        with listed_files():
            yield
    except InfraError as error:
        lease.check()
        if not isinstance(error, DamagedPart):
            raise
        drop_damaged(run, staged, tasks)
        raise DamagedPart(f"{error}; run again") from error


def _account(run: RunContext, slices: Slices, tasks: RunTasks) -> LabelledDuplicates:
    """Count the staged slices of all runs; return the rows with the id of an earlier row."""
    run.record.tiled([key for key, _ in slices])
    run.record.recount([(key, file.path) for key, file in slices], partial(read_footer, run.store))
    failpoint("tiled")
    if run.job.source.id_column is None:
        return {}  # paths and row numbers are unique by construction
    paths = [(key, file.path) for key, file in slices]
    hashes = tasks(read_hashes, [(run.store, path) for _, path in paths])
    duplicates = find_duplicates(run.store, paths, hashes)
    run.record.duplicates(Counter(label for rows in duplicates.values() for _, label in rows))
    return duplicates


def _compact(
    run: RunContext,
    plan: Plan,
    compactor: Compactor,
    slices: Slices,
    duplicates: LabelledDuplicates,
    tasks: RunTasks,
) -> Compacted:
    sized = [(key, file.path, float(file.size_bytes)) for key, file in slices]
    repeated = {key: tuple(row for row, _ in rows) for key, rows in duplicates.items()}
    if (columns := run.job.sink.partition_columns) and {*columns} <= {*compactor.schema.names}:
        return compact_by_value(compactor, columns, sized, plan.units, repeated, tasks)
    return compact_slices(compactor, sized, plan.units, repeated, tasks)


def _write_keys(
    run: RunContext,
    work: Work,
    compactor: Compactor,
    compacted: Compacted,
    slices: Sequence[SliceKey],
) -> dict[str, str]:
    """Write the shard table of a version; return its entry in the manifest."""
    plan, reuse, today = work.plan, work.reuse, day_of(dt.datetime.now(dt.UTC))
    if run.job.run.limit_rows is not None:
        return {}  # not all rows of its shards are there
    days, uncertain_units = reuse.days, run.record.units_with_looked_up_rows
    if uncertain_units:
        # The version in which a row was found is unknown, so the oldest one decides.
        url = Store(plan.source_root).url
        extents = (extent for index in uncertain_units for extent in plan.units[index].extents)
        days |= dict.fromkeys((url(extent.path) for extent in extents), reuse.oldest_day)
    about = About(
        "" if reuse.has_mixed_code else plan.predictor_key,
        plan.row_settings,
        "content" if plan.has_hashes else "inputs",
        environment_versions(),
    )
    failed = read_failed(run.store, f"{compactor.folder}/", compacted.quarantine)
    shards = known_shards(plan, slices, failed, days, today=today)
    folder = run.layout.keys(compactor.version)
    return write_shard_table(run.store, folder, about, shards, compacted)


def _require_counted(manifest: Manifest) -> None:
    """Check that the parts have the rows that were counted.

    Raises:
        InfraError: They do not.
    """
    counted = (manifest.num_predicted, manifest.num_quarantined)
    written = tuple(
        sum(part.num_rows for part in parts)
        for parts in (manifest.parts, manifest.quarantine_parts)
    )
    if counted != written:
        raise InfraError(
            f"partition {manifest.partition}: the parts have {written[0]} predictions and "
            f"{written[1]} quarantined rows, expected {counted[0]} and {counted[1]}; nothing was "
            "published, run again"
        )


def fail_fast_on_certain_refusal(run: RunContext, plan: Plan) -> None:
    """Stop a run once no remaining row can make the gates pass.

    Raises:
        GateRefused: A gate is certain to refuse; finished slices stay.
        SystematicFailure: The same, and all rows so far failed in the model for one cause.
    """
    record = run.record
    if plan.num_rows is None or record.num_done >= plan.num_rows:
        return  # with all rows there the gates judge everything
    judge_so_far = partial(
        certain_failures,
        run.job.gates,
        plan.num_rows,
        record.num_quarantined,
        record.reasons,
        run.options.accepted,
    )
    if judge_so_far(unreadable=record.unreadable):
        require_some_row(run)
        failed = judge_so_far(record.top_failures(), record.unreadable)
        record.judged(failed)
        raise early_refusal(failed, record.num_done, plan.num_rows)


def require_some_row(run: RunContext) -> None:
    """Check that the model did not fail on every row for one cause.

    The rows of a retry have failed before, so they prove nothing.

    Raises:
        SystematicFailure: No row has a prediction, for one cause; a later run computes these
            slices again.
    """
    record = run.record
    cause = common_cause(record.top_failures(MAX_PER_RUN), record.num_predicted)
    if cause is not None and not record.is_retry:
        raise SystematicFailure.of(cause)


def _judge(run: RunContext, plan: Plan, num_rows: int, base: Manifest | None) -> list[GateResult]:
    """Judge the counted rows by the gates, and note the results."""
    record, gates = run.record, run.job.gates
    figures = Figures(
        num_planned=num_rows,
        num_predicted=record.num_predicted,
        num_quarantined=record.num_quarantined,
        num_shards=plan.num_shards,
        reasons=record.reasons,
        causes=record.top_failures(),
        measured=record.figures,
        distribution=record.distribution,
        unreadable=record.unreadable,
        num_skipped=record.skipped.judged,
        why_empty=""
        if plan.num_shards
        else describe_no_input(run.job.source, record.skipped, plan.left_out),
        is_limited=run.job.run.limit_rows is not None,
    )
    if record.num_carried or record.num_checked:
        num_computed = record.num_done - record.num_carried
        figures = replace(
            figures,
            num_carried=record.num_carried,
            num_checked=record.num_checked,
            is_retry=record.is_retry,
            differing=tuple(record.differing),
            computed=record.computed_distribution,
            num_computed=max(0, num_computed - record.num_quarantined),
        )
    past = Past()
    if "history" in needs_of(gates):
        past = look_back(run.store, run.layout, base, gates.volume.history_partitions)
    results = judge(gates, figures, past, run.options.accepted)
    record.judged(results)
    return results


def _compactor(run: RunContext, plan: Plan, number: int) -> Compactor:
    version = f"{number:06d}-{uuid.uuid4().hex[:12]}"
    return Compactor(
        store=run.store,
        folder=run.layout.compacted(plan.work, version),
        version=version,
        schema=plan.prediction_schema(),
        compression=run.job.sink.compression,
        metadata=file_metadata(plan, run.record.run_id, run.record.figures.devices),
        target_bytes=run.job.sink.target_part_mib * _MIB,
        inputs=Store(plan.source_root),
    )


def _card(run: RunContext, plan: Plan) -> dict[str, Any]:
    """Return the fields of the job for the dataset card; {} if none is written."""
    card = run.job.sink.card
    fields = card.model_dump(mode="json", exclude={"write"})
    return {**fields, "input": Store(plan.source_root).uri} if card.write else {}


def _manifest(
    run: RunContext,
    work: Work,
    plan: Plan,
    number: int,
    compacted: Compacted,
    results: Sequence[GateResult],
) -> Manifest:
    """Return the manifest of a new version; its token is drawn here."""
    fingerprint, parts = work.fingerprint_of(plan)
    columns, schema = run.job.sink.partition_columns, plan.prediction_schema()
    root = Store(plan.source_root)
    pinned = {} if root.uri == root.url() else {"uri": root.uri}
    return Manifest(
        number=number,
        kind="publish",
        partition=run.layout.name,
        fingerprint=fingerprint,
        plan=plan.work,
        run_id=run.record.run_id,
        token=uuid.uuid4().hex,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        num_rows=run.record.num_done,  # as a gate compared it with the slices
        num_predicted=run.record.num_predicted,
        num_quarantined=run.record.num_quarantined,
        num_unreadable_shards=run.record.num_unreadable_shards,
        row_id_hash=compacted.row_id_hash,
        parts=compacted.predictions,
        quarantine_parts=compacted.quarantine,
        partition_columns=partition_types(columns, schema, run.job.source.passed),
        model=plan.model,
        gates=tuple(result.to_dict() for result in results),
        distribution=run.record.distribution.to_dict(),
        skipped=run.record.skipped.to_dict(),
        left_out=plan.left_out._asdict() if plan.where else {},
        versions={**package_versions(), **environment_versions()},
        devices=dict(run.record.figures.devices),
        fingerprint_parts=parts,
        ctimes_sha256=plan.ctimes_sha256,
        carried=run.record.carried_facts,
        source={**run.job.source.as_published(plan.table_version), **pinned},
        sections=run.job.as_published(),
        card=_card(run, plan),
        table=run.table.reference if run.table else {},
    )
