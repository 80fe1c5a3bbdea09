"""Write what a version knows of its rows, so that later runs can carry them."""

from __future__ import annotations

import datetime as dt

from pipeline.commit.keys.meta import About, KeyFile, Kind
from pipeline.commit.keys.row_keys import KeyWriter, write_buckets
from pipeline.commit.keys.shards import known_shards
from pipeline.commit.keys.writing import read_failed, write_keys
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.core.versions import environment_versions
from pipeline.job.job import Job
from pipeline.planning.carried import day_of
from pipeline.planning.plan import Plan
from pipeline.planning.predictor import predictor_key
from pipeline.runs.context import RunContext
from pipeline.runs.merging import KeyFacts, sized


def keeps_keys(job: Job, plan: Plan) -> bool:
    """Tell whether versions of a job know their shards, so that rows can be carried from them.

    They do not if what decides predictions is unknown, if not all rows of the shards are in them,
    or if rows are sorted by value.
    """
    is_whole = job.run.limit_rows is None and not job.sink.partition_columns
    return is_whole and bool(plan.predictor)


def keeps_hashes(job: Job, plan: Plan) -> bool:
    """Tell whether they know the content of their rows as well."""
    return job.run.reuse == "content" and keeps_keys(job, plan)


def write_version_keys(
    run: RunContext,
    facts: KeyFacts | None,
    compactor: Compactor,
    compacted: Compacted,
    tasks: RunTasks,
) -> dict[str, str]:
    """Write the keys of a version whose parts are written; return what the manifest says of them.

    Returns:
        {} if it gets none: see `keeps_keys`.
    """
    job = run.job
    if facts is None or not keeps_keys(job, facts.plan):
        return {}
    kind: Kind = "content" if keeps_hashes(job, facts.plan) else "inputs"
    key = predictor_key(facts.plan.predictor)
    about = About(key, facts.plan.row_settings, kind, environment_versions())
    failed = read_failed(run.store, compactor.folder, compacted.quarantine)
    shards = known_shards(
        *(facts.plan, facts.unit_rows, failed.ranks, failed.unread),
        is_limited=False,
        today=day_of(dt.datetime.now(dt.UTC)),
        days=facts.days,
    )
    folder, parts = run.layout.keys(compactor.version), compacted.predictions
    buckets: dict[str, KeyFile] = {}
    if kind == "content":
        writer = KeyWriter(
            *(run.store, folder, f"{compactor.folder}/keys"),
            tuple(part.num_rows for part in parts),
            facts.duplicates,
            facts.sources,
        )
        slices = sized(facts.slices)
        buckets = write_buckets(writer, slices, facts.runs, tasks, gone=facts.gone)
    return write_keys(run.store, folder, about, shards, parts, buckets)
