"""From staged slices to a published partition: verify, judge, compact, commit."""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from pipeline.commit.lease import Lease
from pipeline.commit.manifest import Manifest
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.parts.row_ids import find_duplicates, read_hashes
from pipeline.commit.publish import commit, sync_published_folder
from pipeline.commit.staging import read_footer
from pipeline.core.causes import MAX_PER_RUN, SystematicFailure, common_cause, format_causes
from pipeline.core.hive_paths import partition_types
from pipeline.core.slices import SliceKey
from pipeline.core.versions import environment_versions, package_versions
from pipeline.gates.gate import Figures
from pipeline.gates.history import Past, look_back
from pipeline.gates.judging import certain_failures, early_refusal, judge, needs_of
from pipeline.gates.results import GateResult, require_pass
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import Slices, require_complete
from pipeline.process.failpoints import failpoint
from pipeline.runs.context import RunContext
from pipeline.runs.keys import write_version_keys
from pipeline.runs.merging import Alone, Duplicates, Merge, Merged
from pipeline.sources.inputs import describe_no_input
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store, StoredFile

_MIB = 2**20


def finish(
    run: RunContext,
    plan: Plan,
    staged: Mapping[SliceKey, StoredFile],
    base: Manifest | None,
    lease: Lease,
    tasks: RunTasks,
    merge: Merge | None = None,
) -> Manifest:
    """Publish the staged slices of a plan.

    Args:
        plan: The plan that the slices must tile.
        staged: The winning staged part of every slice.
        base: What is published now; ours becomes the next version.
        lease: Ours; checked before anything is made visible.
        tasks: Runs a function for every tuple of arguments.
        merge: What the rows are put together with; None publishes them alone.

    Returns:
        What is current then: `base` itself if a retry changed nothing.

    Raises:
        GateRefused: A gate refused; the published partition is unchanged.
        PartitionBusy: Another run took the lease over.
        PublishConflict: Another run published something different meanwhile.
        InfraError: Slices are missing, or the store failed.
    """
    with run.record.stage("publish") as published, listed_files():
        slices = require_complete(plan, staged)
        lease.check()
        duplicates = _account(run, slices, tasks, merge)
        merged: Merged = Alone(plan, slices, duplicates)
        if merge:
            merged = merge.begin(run, slices, duplicates, tasks)
        if merged.unchanged:
            return merged.unchanged
        num_rows = run.record.num_planned
        results = _judge(run, plan, num_rows, base)
        causes = run.record.top_failures()
        require_pass(results, format_causes(causes, run.record.num_quarantined))
        failpoint("judged")
        number = base.number + 1 if base else 1
        compactor = _compactor(run, plan, number, merge)
        compacted = merged.compact(compactor, run.job.sink.partition_columns, tasks)
        keys = write_version_keys(run, merged.key_facts, compactor, compacted, tasks)
        manifest = _manifest(run, plan, number, compacted, results)
        manifest = replace(merged.to_manifest(manifest), keys=keys)
        failpoint("compacted")
        lease.check()
        current = commit(run.store, run.layout, manifest, compactor.folder)
        sync_published_folder(
            run.store, run.layout, current, run.job.sink.keep_versions, table=run.table
        )
        published.rows_in = published.rows_out = num_rows
        published.bytes_in = sum(file.size_bytes for _, file in slices)
        published.bytes_out = sum(part.size_bytes for part in manifest.all_parts)
    return current


def _account(run: RunContext, slices: Slices, tasks: RunTasks, merge: Merge | None) -> Duplicates:
    """Count what is staged by any run; return the rows whose id another row has."""
    run.record.tiled([key for key, _ in slices])
    run.record.recount([(key, file.path) for key, file in slices], partial(read_footer, run.store))
    failpoint("tiled")
    return _find_duplicates(run, slices, tasks, merge)


def _find_duplicates(
    run: RunContext, slices: Slices, tasks: RunTasks, merge: Merge | None
) -> Duplicates:
    if run.job.source.id_column is None:
        return Duplicates()  # paths and row numbers are unique by construction
    paths = [(key, file.path) for key, file in slices]
    hashes = tasks(read_hashes, [(run.store, path) for _, path in paths])
    if merge:
        found = merge.find_duplicates(run, slices, hashes, tasks)
    else:
        found = Duplicates(find_duplicates(run.store, paths, hashes))
    run.record.duplicates(Counter(label for rows in found.staged.values() for _, label in rows))
    return found


def fail_fast_on_certain_refusal(run: RunContext, plan: Plan) -> None:
    """Stop once no remaining row can make the gates pass.

    Raises:
        GateRefused: They are; finished slices stay.
        SystematicFailure: They are, for all rows so far failed in the model for one cause.
    """
    record = run.record
    if plan.num_rows is None or record.num_done >= plan.num_rows:
        return  # with all rows there the gates judge everything
    num_planned = plan.num_rows + record.num_kept
    judge_so_far = partial(
        certain_failures,
        run.job.gates,
        num_planned,
        record.num_quarantined,
        record.reasons,
        run.options.accepted,
    )
    if judge_so_far():
        require_some_row(run)
        failed = judge_so_far(record.top_failures())
        record.judged(failed)
        raise early_refusal(failed, record.num_accounted, num_planned)


def require_some_row(run: RunContext) -> None:
    """Make sure that the model did not fail for one cause whatever the row was.

    Rows of a retry have failed before, so they prove nothing.

    Raises:
        SystematicFailure: No row has a prediction, for one cause; a later run computes these
            slices again.
    """
    record = run.record
    found = common_cause(record.top_failures(MAX_PER_RUN), record.num_predicted)
    if found is not None and not record.is_retry:
        raise SystematicFailure.of(found)


def _judge(run: RunContext, plan: Plan, num_rows: int, base: Manifest | None) -> list[GateResult]:
    """Let the gates judge what the recorder counted, and note their results."""
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
        num_skipped=record.skipped.judged,
        why_empty="" if plan.num_shards else describe_no_input(run.job.source, record.skipped),
        is_limited=run.job.run.limit_rows is not None,
    )
    carried = record.carried_section
    if carried is not None and carried.rows:
        num_done = record.num_done - (carried.content_rows or 0)
        figures = replace(
            figures,
            num_carried=carried.rows,
            num_checked=record.num_checked,
            differing=record.differing,
            computed=record.own_distribution,
            num_computed=num_done - record.num_quarantined,  # all of them are computed again
        )
    past = Past()
    if "history" in needs_of(gates):
        past = look_back(run.store, run.layout, base, gates.volume.history_partitions)
    results = judge(gates, figures, past, run.options.accepted)
    record.judged(results)
    return results


def _compactor(run: RunContext, plan: Plan, number: int, merge: Merge | None) -> Compactor:
    version = f"{number:06d}-{uuid.uuid4().hex[:12]}"
    told = merge.named(plan) if merge else plan
    return Compactor(
        store=run.store,
        folder=run.layout.compacted(plan.fingerprint, version),
        version=version,
        schema=plan.prediction_schema(),
        compression=run.job.sink.compression,
        metadata=file_metadata(told, run.record.run_id, run.record.figures.devices),
        target_bytes=run.job.sink.target_part_mib * _MIB,
    )


def _card(run: RunContext, plan: Plan) -> dict[str, Any]:
    """Return what the dataset card says of the job; {} if there is to be none."""
    card = run.job.sink.card
    told = card.model_dump(mode="json", exclude={"write"})
    return {**told, "input": Store(plan.source_root).url("")} if card.write else {}


def _manifest(
    run: RunContext, plan: Plan, number: int, compacted: Compacted, results: Sequence[GateResult]
) -> Manifest:
    """Return the manifest of a new version; its token is drawn here."""
    return Manifest(
        number=number,
        kind="publish",
        partition=run.layout.name,
        fingerprint=plan.fingerprint,
        run_id=run.record.run_id,
        token=uuid.uuid4().hex,
        created_at=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        num_rows=run.record.num_accounted,  # what a gate compared with the slices
        num_predicted=run.record.num_predicted,
        num_quarantined=run.record.num_quarantined,
        num_unreadable_shards=run.record.num_unreadable_shards,
        row_id_hash=compacted.row_id_hash,
        parts=compacted.predictions,
        quarantine_parts=compacted.quarantine,
        partition_columns=partition_types(run.job.sink.partition_columns, plan.prediction_schema()),
        model=plan.model,
        gates=tuple(result.to_dict() for result in results),
        distribution=run.record.distribution.to_dict(),
        skipped=run.record.skipped.to_dict(),
        versions={**package_versions(), **environment_versions()},
        devices=dict(run.record.figures.devices),
        fingerprint_parts=plan.fingerprint_parts,
        ctimes_sha256=plan.ctimes_sha256,
        carried=run.record.carried_facts,
        source=run.job.source.as_published(),
        sections=run.job.as_published(),
        card=_card(run, plan),
    )
