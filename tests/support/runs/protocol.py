"""A run from its plan to the published partition, without Ray and without a model.

Lease, plan, staged slices, gates, publishing and garbage are the functions that a run calls, in the
order of `pipeline.dataflow`; only the rows are made up, and one process does it all.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess

import pyarrow as pa

from pipeline.commit.garbage import collect_garbage
from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.commit.manifest import (
    Manifest,
    Part,
    current_manifest,
    log_numbers,
    read_manifest,
)
from pipeline.commit.parts.part_writer import file_metadata
from pipeline.commit.plan_store import adopt_plan
from pipeline.commit.publish import history_numbers, repair
from pipeline.commit.staging import StagingWriter, list_staged, read_footer
from pipeline.core.environment import FAILPOINT
from pipeline.core.slices import SliceKey
from pipeline.job.job import Job
from pipeline.planning.plan import Plan
from pipeline.planning.tiling import done_slices
from pipeline.published.verify import verify_output
from pipeline.report.recorder import RunRecorder
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.ending.finish import finish
from pipeline.storage.store import Store, StoredFile
from support.runs.checkout import PYTHONPATH
from support.runs.published import DAY, Rows, make_plan, run_here, slice_table, work_of
from support.runs.published_rows import read_part

LAYOUT = Layout(DAY)
FOLDERS = (LAYOUT.predictions, LAYOUT.quarantine)
KEEP_VERSIONS = 1
LONG_AGO_S = -3600.0
"""As a period of grace: whatever is there is old enough, whatever the store's clock says."""

Staged = Mapping[SliceKey, StoredFile]
MakeSlice = Callable[[Rows, int], pa.Table]


@dataclass(frozen=True)
class Done:
    """What a run did."""

    manifest: Manifest
    num_computed: int
    num_resumed: int


def run_once(
    store: Store, rows: Rows, *, ttl_s: float = 60.0, make: MakeSlice = slice_table
) -> Done:
    """Do what a run does, up to its report.

    Args:
        store: The sink.
        rows: What the plan promises.
        ttl_s: Of the lease.
        make: Computes a slice by its number.
    """
    plan = make_plan(rows)
    run = new_run(store)
    current = current_manifest(store, LAYOUT)
    if current is not None and current.is_of(plan.fingerprint, ()):
        with hold_lease(store, LAYOUT, run.record.run_id, ttl_s):
            current = repair(store, LAYOUT, KEEP_VERSIONS, is_last=True)
        assert current is not None
        return Done(current, 0, plan.num_rows or 0)
    with hold_lease(store, LAYOUT, run.record.run_id, ttl_s) as lease:
        base = repair(store, LAYOUT, KEEP_VERSIONS)
        if base is not None and base.is_of(plan.fingerprint, ()):
            return Done(base, 0, plan.num_rows or 0)
        plan = adopt_plan(store, LAYOUT, plan)
        before = list_staged(store, LAYOUT.staging(plan.work))
        num_resumed = resume(run, plan, before)
        num_computed = compute(run, plan, rows, make, before)
        staged = list_staged(store, LAYOUT.staging(plan.work))
        manifest = finish(run, work_of(plan, base), plan, staged, lease, run_here)
    return Done(manifest, num_computed, num_resumed)


def new_run(store: Store) -> RunContext:
    job = Job.model_validate(
        {
            "source": {"uri": "in", "format": "parquet"},
            "model": {"name": "made-up"},
            "sink": {"uri": store.uri, "partition": DAY, "keep_versions": KEEP_VERSIONS},
            "gates": {"max_error_pct": 60.0},
        }
    )
    record = RunRecorder(f"run-{uuid.uuid4().hex[:8]}", LAYOUT.name)
    return RunContext(job, RunOptions(), store, LAYOUT, record)


def resume(run: RunContext, plan: Plan, staged: Staged) -> int:
    """Count the slices that are staged already; return their rows."""
    done = done_slices(plan, staged)
    for key in done:
        run.record.resumed(read_footer(run.store, staged[key].path))
    return sum(key.num_rows for key in done)


def compute(run: RunContext, plan: Plan, rows: Rows, make: MakeSlice, staged: Staged) -> int:
    """Stage the slices that are missing; return their rows."""
    writer = writer_of(run, plan)
    num_computed = 0
    for index, key in enumerate(plan.slices()):
        if key not in staged:
            run.record.computed(writer.write(key, {}, make(rows, index)))
            num_computed += key.num_rows
    return num_computed


def writer_of(run: RunContext, plan: Plan) -> StagingWriter:
    run_id = run.record.run_id
    folder = LAYOUT.staging(plan.work)
    return StagingWriter(run.store, folder, run_id, "zstd", file_metadata(plan, run_id))


def collect(store: Store) -> None:
    """Collect all garbage, however young."""
    collect_garbage(store, LAYOUT, grace_s=LONG_AGO_S)


class Children:
    """Processes that do a step until they are killed; forked from one that has imported all."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        # What the steps of a retry import, torch too, would take each child a second or more.
        self._context.set_forkserver_preload([__name__, "s3fs", "support.runs.earlier_partitions"])
        before = os.environ.get("PYTHONPATH", "")
        os.environ["PYTHONPATH"] = os.pathsep.join([PYTHONPATH, before])  # for the first process
        forkserver.ensure_running()
        os.environ["PYTHONPATH"] = before

    def start(self, step: Callable[..., object], *arguments: object, point: str) -> BaseProcess:
        """Start `step(*arguments)` in a process of its own that is killed at a failpoint."""
        child = self._context.Process(target=_do_until, args=(point, step, arguments), daemon=True)
        child.start()
        return child


def _do_until(point: str, step: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.environ[FAILPOINT] = point
    step(*arguments)


def content(store: Store, manifest: Manifest) -> tuple[pa.Table, pa.Table]:
    """The rows of a version, without what tells one attempt from another."""
    predictions = pa.concat_tables([read_part(store, part) for part in manifest.parts])
    quarantine = [read_part(store, part) for part in manifest.quarantine_parts]
    bad = pa.concat_tables(quarantine).drop_columns(["run_id"]) if quarantine else pa.table({})
    return predictions, bad


def assert_readable(store: Store) -> Manifest | None:
    """Check that a reader of the manifest finds every part of one version as it was published.

    A reader of the list in `current.json` does, too: of that version, or of the one before.
    """
    numbers = log_numbers(store, LAYOUT)
    assert numbers == list(range(1, len(numbers) + 1))
    manifest = current_manifest(store, LAYOUT)
    for part in manifest.all_parts if manifest else ():
        assert_as_published(store, part)
    if store.exists(LAYOUT.current):
        listed = Manifest.from_json(store.read_bytes(LAYOUT.current), LAYOUT.current)
        assert listed.number in numbers[-2:]
        for part in listed.all_parts:
            assert_as_published(store, part)
    return manifest


def assert_tidy(store: Store, versions: list[int], layout: Layout = LAYOUT) -> None:
    """Check that a partition has these versions, the one before the last kept, and no others."""
    assert log_numbers(store, layout) == versions
    assert history_numbers(store, layout) == versions[-2:-1]
    kept = {read_manifest(store, layout, version).keys["folder"] for version in versions[-2:]}
    assert {file.path.rpartition("/")[0] for file in store.list_files(layout.all_keys)} == kept
    options = dict(store.storage_options)
    assert verify_output(store.uri, layout.name, options)["status"] == "ok"


def assert_as_published(store: Store, part: Part) -> None:
    data = store.read_bytes(part.path)
    assert hashlib.sha256(data).hexdigest() == part.sha256, part.path
