"""Say why a published version is not what a run would publish."""

from __future__ import annotations

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.plan_store import plan_from_json
from pipeline.core.errors import InfraError
from pipeline.planning.changes import shards_changed, what_changed
from pipeline.planning.plan import Plan
from pipeline.storage.store import Store


def why_stale(store: Store, layout: Layout, published: Manifest, plan: Plan) -> str:
    """Name the shards, parts of the model and settings that changed since a version.

    Returns:
        '' if nothing that is known of it changed.
    """
    before, now = published.fingerprint_parts, plan.fingerprint_parts
    inputs = ""
    if before.get("inputs") != now.get("inputs"):
        fingerprint = published.plan or published.fingerprint
        try:
            data = store.read_bytes(layout.plan(fingerprint))
            inputs = shards_changed(plan_from_json(data, fingerprint), plan)
        except (FileNotFoundError, InfraError):
            inputs = ""  # which shards changed is a detail; that some did is known
    return what_changed(before, now, models=(published.model, plan.model), inputs=inputs)
