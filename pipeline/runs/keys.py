"""Write what a version knows of its rows, so that later runs can carry them."""

from __future__ import annotations

import datetime as dt

from pipeline.commit.keys.meta import About, KeyFile, Kind
from pipeline.commit.keys.row_keys import KeyWriter, write_buckets
from pipeline.commit.keys.shards import known_shards
from pipeline.commit.keys.writing import read_failed, write_keys
from pipeline.commit.parts.compaction import Compacted, Compactor, RunTasks
from pipeline.core.versions import environment_versions
from pipeline.planning.carried import day_of
from pipeline.planning.predictor import predictor_key
from pipeline.runs.context import RunContext
from pipeline.runs.merging import KeyFacts, sized


def write_version_keys(
    run: RunContext,
    facts: KeyFacts | None,
    compactor: Compactor,
    compacted: Compacted,
    tasks: RunTasks,
) -> dict[str, str]:
    """Write the keys of a version whose parts are written; return what the manifest says of them.

    Returns:
        {} if nothing could be carried from it: what decides its predictions is unknown, not all
        rows of its shards are in it, or they are sorted by value.
    """
    job = run.job
    if facts is None or not facts.plan.predictor:
        return {}
    if job.run.limit_rows is not None or job.sink.partition_columns:
        return {}
    kind: Kind = "content" if job.run.reuse == "content" else "inputs"
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
