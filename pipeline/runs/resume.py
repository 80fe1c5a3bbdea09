"""What an earlier run has done already: a published version, or staged slices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import Manifest
from pipeline.commit.publish import repair
from pipeline.commit.staging import list_staged, read_footer
from pipeline.core.errors import PartitionBusy
from pipeline.core.failures import Reason
from pipeline.core.heartbeat import beat
from pipeline.core.slices import SliceKey
from pipeline.models.spec import EAGER, FP32
from pipeline.plan.plan import Plan
from pipeline.plan.tiling import done_slices
from pipeline.runs.context import RunContext
from pipeline.storage.store import StoredFile

_FOOTER_THREADS = 16


def take_over(run: RunContext, plan: Plan) -> Mapping[SliceKey, StoredFile]:
    """Count the slices that are staged already; return the staged part of each.

    Slices in which the model failed over every row are deleted: the cause may be mended since, in
    code of the user's that no fingerprint knows.
    """
    counted: set[SliceKey] = set()
    while True:
        staged = list_staged(run.store, run.layout.staging(plan.fingerprint))
        done = [key for key in done_slices(plan, staged) if key not in counted]
        paths, failed = [staged[key].path for key in done], list[str]()
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            footers = pool.map(partial(read_footer, run.store), paths)
            for key, path, footer in zip(done, paths, footers, strict=True):
                beat("read the footer of a finished slice")
                if footer.is_without_predictions_by(Reason.MODEL_ERROR):
                    failed.append(path)
                else:
                    run.record.resumed(footer)
                    counted.add(key)
        if not failed:
            return staged
        run.store.delete(failed)  # another attempt at the same slice may come forth now


def is_published(manifest: Manifest | None, plan: Plan, partition_columns: Sequence[str]) -> bool:
    """Tell whether a version holds just what the plan would give."""
    if manifest is None:
        return False
    if manifest.is_of(plan.fingerprint, partition_columns):
        return True
    is_exact = (manifest.model.get("runtime"), manifest.model.get("precision")) == (EAGER, FP32)
    return is_exact and bool(plan.twin) and manifest.is_of(plan.twin, partition_columns)


def note_if_published(run: RunContext, manifest: Manifest | None, plan: Plan) -> bool:
    """Tell whether a version holds just what the plan would give; note it if so."""
    if manifest is None or not is_published(manifest, plan, run.job.sink.partition_columns):
        return False
    run.record.found_published(manifest, run.store.url(run.layout.predictions))
    return True


def tidy_if_free(run: RunContext) -> None:
    """Finish what a run left undone that crashed after its commit; not while another run works."""
    try:
        with hold_lease(run.store, run.layout, run.record.run_id, run.job.run.lease_ttl_s):
            keep = run.job.sink.keep_versions
            repair(run.store, run.layout, keep, table=run.table, is_last=True)
    except PartitionBusy:
        return
