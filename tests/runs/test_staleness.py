"""Test how a published version is compared with a plan, and that the differences are named."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.runs.cli import photos_job
from support.runs.plan_examples import SPEC, inputs_of, job, planned, shard_extents
from support.runs.published import DAY, Rows, make_manifest, make_plan

from pipeline.commit.layout import Layout
from pipeline.commit.lease import hold_lease
from pipeline.core.errors import PartitionBusy
from pipeline.operations.run import run
from pipeline.planning.plan import fingerprint_parts
from pipeline.runs.staleness import is_published, next_step, shards_changed, what_changed
from pipeline.storage.store import Store


@pytest.mark.parametrize(
    ("runtime", "precision", "is_same"),
    [("eager", "fp32", True), ("onnxruntime", "fp32", False), ("eager", "bf16", False)],
)
def test_what_a_twin_published_is_the_same_only_in_eager_fp32(
    runtime: str, precision: str, is_same: bool
):
    plan = make_plan(Rows())
    model = {**plan.model, "runtime": runtime, "precision": precision}
    manifest = make_manifest(Layout(DAY), replace(plan, model=model), 1, "r", (), ())
    twin = replace(plan, fingerprint="other", twin=plan.fingerprint)
    assert is_published(manifest, plan, ())
    assert is_published(manifest, twin, ()) == is_same
    assert not is_published(manifest, replace(twin, twin=""), ())
    assert not is_published(manifest, twin, ("label",))


def test_what_a_run_would_do_names_the_version_and_what_is_staged():
    manifest = make_manifest(Layout(DAY), make_plan(Rows()), 3, "r", (), ())
    assert next_step(None, has_staged=False) == "publish the first version"
    assert next_step(manifest, has_staged=True) == "resume, then replace version 3"


EXTENTS = shard_extents([[4, 4], [8]])


def test_what_changed_is_named_by_its_part():
    then = fingerprint_parts(job(), inputs_of(EXTENTS), SPEC)
    touched = replace(inputs_of(EXTENTS), shards=inputs_of(EXTENTS).shards[:1])
    now = fingerprint_parts(job(run__limit_rows=3), touched, replace(SPEC, code_sha256="d" * 64))
    assert what_changed(then, then) == what_changed({}, now) == ""
    assert what_changed(then, now) == (
        "the input (a name, size or time of a shard), the model or what decides "
        "its predictions, the job's source or row limit"
    )
    newer = {**then, "semantics": {**then["semantics"], "decode": 99}}
    assert what_changed(then, newer) == "how this version of the package computes (decode)"
    ours = {**then, "extensions": {"own.task": "1", "own.input": "1"}}
    theirs = {**then, "extensions": {"own.task": "2", "own.input": "1"}}
    assert what_changed(ours, theirs) == "the code of own.task"
    assert what_changed(ours, then) == "the code of own.input, the code of own.task"


def test_shards_that_changed_are_named():
    extents = shard_extents([[3], [4], [5]], 10.0)
    new = shard_extents([[3], [4], [5], [6]])[3:]
    other = [replace(extents[0], version="v2"), extents[1], *new]
    before, now = planned(extents), planned(other)
    assert shards_changed(before, now) == (
        "the input: 1 shard new (s00003.parquet), 1 shard changed (s00000.parquet), "
        "1 shard gone (s00002.parquet)"
    )
    grown = planned([replace(extents[0], size_bytes=11, version="v2"), *extents[1:], *new])
    assert shards_changed(before, grown) == (
        "the source has grown: 1 shard new (s00003.parquet), 1 shard changed (s00000.parquet)"
    )
    for same_size in ([replace(extents[0], version="v2"), *extents[1:]], extents[1:]):
        assert shards_changed(before, planned(same_size)).startswith("the input: ")
    assert shards_changed(before, replace(before, source_root="/new")) == "the input (it was /in)"
    assert shards_changed(before, before) == "the input: its columns or their types"
    many = planned(shard_extents([[1]] * 9, 10.0))
    assert "6 shards new (s00003.parquet, s00004.parquet, s00005.parquet, ...)" in shards_changed(
        before, many
    )


def test_what_changed_of_a_model_is_named_if_both_are_known():
    then, now = {"model": "1"}, {"model": "2"}
    models = ({"weights_sha256": "a", "layer": None}, {"weights_sha256": "b", "layer": None})
    assert what_changed(then, now, models=models) == "the weights"
    assert what_changed(then, then, models=models) == ""


@pytest.mark.usefixtures("without_ray_here")
def test_a_run_is_busy_until_the_marker_of_the_version_is_written(tmp_path: Path):
    job = photos_job(tmp_path, 4)
    assert run(job, date="2026-11-24", allow_import=["models"]).status == "published"
    out, layout = Store(str(tmp_path / "out")), Layout("date=2026-11-24")
    with hold_lease(out, layout, "suspended", 60.0):
        again = run(job, date="2026-11-24", allow_import=["models"])
        assert again.status == "nothing_to_do"
        out.delete([layout.success])
        with pytest.raises(PartitionBusy):
            run(job, date="2026-11-24", allow_import=["models"])
    again = run(job, date="2026-11-24", allow_import=["models"])
    assert (again.status, out.exists(layout.success)) == ("nothing_to_do", True)
