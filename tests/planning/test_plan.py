"""Test that units and slices tile the input, and that equal work has an equal fingerprint."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support.runs.checkout import PYTHONPATH
from support.runs.jobs import job_of
from support.runs.plan_examples import (
    SPEC,
    inputs_of,
    job,
    planned,
    shard_extents,
    spec_of,
)

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.planning.plan import Plan, job_extensions, make_plan
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.planning.tiling import first_slices, missing_units
from pipeline.runs.staleness import what_changed
from pipeline.sources.features.encodings import with_categories
from pipeline.sources.listing.inputs import Inputs
from pipeline.sources.units import MAX_SLICE_BYTES, Extent, RowFilter, UncountedPlan, Unit
from pipeline.storage.store import StoredFile


def rows_of(extents: list[Extent] | tuple[Extent, ...]) -> list[tuple[str, int]]:
    return [(e.path, e.first_row + i) for e in extents for i in range(e.num_rows)]


EXTENT_ROWS = st.lists(
    st.lists(st.integers(1, 60) | st.integers(1, 1500), min_size=1, max_size=5),
    min_size=0,
    max_size=12,
)


@given(
    groups=EXTENT_ROWS,
    slice_rows=st.integers(1, 50),
    row_bytes=st.sampled_from([0.0, 0.1, 100.0, 1e7, 1e9]),
    bad=st.sets(st.integers(0, 11)),
    limit_rows=st.none() | st.integers(1, 4000),
)
def test_units_tile_the_input_and_slices_tile_their_unit(
    groups: list[list[int]],
    slice_rows: int,
    row_bytes: float,
    bad: set[int],
    limit_rows: int | None,
):
    extents = [
        replace(e, reason=Reason.BAD_SCHEMA) if int(e.path[1:6]) in bad else e
        for e in shard_extents(groups, row_bytes)
    ]
    plan = planned(extents, run__slice_rows=slice_rows, run__limit_rows=limit_rows)

    wanted = rows_of(extents)[:limit_rows]
    assert [row for unit in plan.units for row in rows_of(unit.extents)] == wanted
    assert plan.num_rows == len(wanted)
    assert [unit.index for unit in plan.units] == list(range(len(plan.units)))
    for unit in plan.units:
        slices = unit.slices()
        assert [key.start for key in slices] == [0, *(key.end for key in slices[:-1])]
        assert slices[-1].end == unit.num_rows == sum(e.num_rows for e in unit.extents)
        assert [key.is_last for key in slices] == [False] * (len(slices) - 1) + [True]
        assert {key.unit for key in slices} == {unit.index}
        step = slices[0].num_rows
        assert all(key.num_rows == step for key in slices[:-1])
        assert 1 <= slices[-1].num_rows <= step <= slice_rows
        heaviest = max(e.row_bytes for e in unit.extents)
        assert step == 1 or step * heaviest <= MAX_SLICE_BYTES
        if slice_rows * heaviest <= MAX_SLICE_BYTES and len(slices) > 1:
            assert step == slice_rows
    keys = list(plan.slices())
    assert len(set(keys)) == len(keys) == plan.num_slices
    assert plan.usual_slice_rows() == [key.num_rows for key in keys]


@given(
    before=st.integers(0, 300),
    huge=st.integers(1, 200_000),
    after=st.integers(0, 300),
    slice_rows=st.integers(1, 64),
)
def test_a_huge_row_group_is_read_from_its_beginning_by_few_units(
    before: int, huge: int, after: int, slice_rows: int
):
    groups = [[n] for n in (before, huge, after) if n]
    plan = planned(shard_extents(groups), run__slice_rows=slice_rows)
    path = f"s{int(before > 0):05d}.parquet"
    pieces = [e for unit in plan.units for e in unit.extents if e.path == path]
    assert 1 <= len(pieces) <= 4
    assert [e.first_row for e in pieces] == [0, *(e.first_row + e.num_rows for e in pieces[:-1])]
    assert all(e.num_rows % slice_rows == 0 for e in pieces[:-1])


def test_one_huge_row_group_keeps_several_readers_busy():
    assert len(planned(shard_extents([[100_000]]), run__slice_rows=256).units) == 4


def test_rows_that_cannot_be_read_are_not_cut():
    (extent,) = shard_extents([[100_000]])
    bad = replace(extent, reason=Reason.BAD_SCHEMA)
    assert [u.extents for u in planned([bad], run__slice_rows=256).units] == [(bad,)]


def test_many_tiny_shards_share_units():
    plan = planned(shard_extents([[1]] * 10_000), run__slice_rows=100)
    assert len(plan.units) <= 100
    assert {key.num_rows for key in plan.slices()} == {100}


def test_much_input_makes_units_of_several_slices():
    plan = planned(shard_extents([[200]] * 5_000), run__slice_rows=200)
    lengths = [len(unit.slices()) for unit in plan.units]
    assert lengths == sorted(lengths, reverse=True)
    assert (lengths[0], lengths[-1]) == (8, 1)
    assert sum(length == 8 for length in lengths) > 0.8 * 5_000 / 8
    small = planned(shard_extents([[200]] * 20), run__slice_rows=200)
    assert {len(unit.slices()) for unit in small.units} == {1}


@given(
    rows=st.integers(1, 6000),
    row_bytes=st.sampled_from([0.0, 100.0, 6e4, 3e6, 1e9]),
    batch_size=st.integers(1, 600),
    has_batch_size=st.booleans(),
)
@example(rows=541, row_bytes=0.0, batch_size=109, has_batch_size=False)  # 112 rows after 109, once
def test_slices_become_smaller_towards_the_end_and_hold_whole_batches(
    rows: int, row_bytes: float, batch_size: int, has_batch_size: bool
):
    settings = {"model__batch_size": batch_size} if has_batch_size else {}
    plan = planned(shard_extents([[1] * rows], row_bytes), batch_size, **settings)
    sizes = [key.num_rows for key in plan.slices()]
    assert sum(sizes) == rows
    is_halved = batch_size * row_bytes > MAX_SLICE_BYTES
    assert is_halved or sizes == sorted(sizes, reverse=True)
    left = rows
    for size in sizes[:-1]:
        assert size <= max(64, batch_size, left / 4) + batch_size / 2
        assert size * row_bytes <= MAX_SLICE_BYTES or size == 1
        assert size % batch_size == 0 or is_halved or (not has_batch_size and size < batch_size)
        left -= size


@given(num_done=st.integers(0, 30), number=st.integers(0, 9))
def test_the_first_missing_slice_of_each_unit_is_found(num_done: int, number: int):
    plan = planned(shard_extents([[200]] * 6), run__slice_rows=40)
    keys = list(plan.slices())
    done = {key: StoredFile(f"{key}", 1, "v", None) for key in keys[:num_done]}
    starts = {key.unit: key.start for key in reversed(keys[num_done:])}
    wanted = sorted(starts.items())[:number]
    assert first_slices(missing_units(plan, done), number) == frozenset(wanted)


def sizes_of(rows: int, row_bytes: float) -> list[int]:
    return [key.num_rows for key in planned(shard_extents([[1] * rows], row_bytes)).slices()]


def test_large_images_go_in_small_slices_and_small_rows_in_large_ones():
    assert sizes_of(200, 3e6)[:12] == [16] * 12
    photos, small = sizes_of(4000, 6e4), sizes_of(4000, 4e3)
    assert (photos[0], small[0]) == (256, 512)
    assert photos[-2] == small[-2] == 64


def test_one_large_image_among_small_ones_makes_no_small_slices():
    extents = shard_extents([[1] * 4000], 6e4)
    extents[3] = replace(extents[3], row_bytes=9e5)
    assert planned(extents).units[0].bounds == (0, 256)


@given(batch_size=st.integers(1, 2000))
def test_most_rows_of_a_slice_are_whole_batches_or_what_the_job_says(batch_size: int):
    sizes = SliceSizes.of(job(), batch_size, "classify")
    assert sizes.most % batch_size == 0
    assert sizes.most == batch_size or 128 <= sizes.most <= 384
    assert SliceSizes.of(job(run__slice_rows=7), batch_size, "classify").most == 7


@pytest.mark.parametrize(
    ("row_bytes", "most"),
    [
        (6e4, 832),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((4e3, 2048), (3e6, 16))),
    ],
)
def test_slices_of_rows_that_are_mostly_known_have_more_of_them_within_the_same_bytes(
    row_bytes: float, most: int
):
    sizes = SliceSizes.of(job(), 32, "classify", are_mostly_known=True)
    units = [*make_units(shard_extents([[1] * 9_000], row_bytes), sizes)]
    assert units[0].slices()[0].num_rows == most
    assert most * row_bytes < 1.05 * 48 * 2**20
    fixed = SliceSizes.of(job(run__slice_rows=7), 32, "classify", are_mostly_known=True)
    assert fixed == SliceSizes.of(job(run__slice_rows=7), 32, "classify")


def test_an_empty_input_makes_an_empty_plan():
    plan = planned([])
    assert (plan.units, plan.num_rows, list(plan.slices())) == ((), 0, [])


@pytest.mark.parametrize(
    ("fields", "row_ids"),
    [
        ({"source__format": "images"}, "path"),
        ({}, "path#row"),
        ({"source__id_column": "id"}, "column"),
    ],
)
def test_a_plan_knows_the_origin_of_ids(fields: dict[str, object], row_ids: str):
    assert planned(shard_extents([[1]]), **fields).row_ids == row_ids


# ---------------------------------------------------------------------------- fingerprint

EXTENTS = shard_extents([[4, 4], [8]])


def fingerprint(
    inputs: Inputs | None = None,
    spec: ModelSpec | None = None,
    batch_size: int = 4,
    **fields: object,
) -> str:
    wanted = job(**fields)
    inputs = inputs or inputs_of(EXTENTS)
    return make_plan(wanted, inputs, spec or spec_of(wanted), batch_size=batch_size).fingerprint


def with_shard(**fields: Any) -> Inputs:
    inputs = inputs_of(EXTENTS)
    return replace(inputs, shards=(replace(inputs.shards[0], **fields), *inputs.shards[1:]))


_FOLDER = tempfile.TemporaryDirectory()
WEIGHTS_FILE, COPY = (str(Path(_FOLDER.name) / name) for name in ("w.pt", "copy.pth"))
for _path in (WEIGHTS_FILE, COPY):
    torch.save({}, _path)
WEIGHTS = {"model__weights": WEIGHTS_FILE, "model__weights_sha256": "a" * 64}
OTHER_WORK: dict[str, str] = {
    "path": fingerprint(with_shard(path="other.parquet")),
    "size": fingerprint(with_shard(size_bytes=9)),
    "version": fingerprint(with_shard(version="v2")),
    "more shards": fingerprint(inputs_of(shard_extents([[4, 4], [8], [1]]))),
    "fewer shards": fingerprint(inputs_of(EXTENTS[:2])),
    "root": fingerprint(replace(inputs_of(EXTENTS), root="/elsewhere")),
    "pass-through type": fingerprint(
        replace(inputs_of(EXTENTS), pass_through=pa.schema([("n", pa.int8())]))
    ),
    "model": fingerprint(model__factory="models:fussy"),
    "code": fingerprint(spec=replace(SPEC, code_sha256="d" * 64)),
    "weights": fingerprint(**WEIGHTS),
    "other weights": fingerprint(**{**WEIGHTS, "model__weights_sha256": "b" * 64}),
    "labels": fingerprint(model__labels=["a", "c"]),
    "order of labels": fingerprint(model__labels=["b", "a"]),
    "top_k": fingerprint(model__top_k=1),
    "precision": fingerprint(model__precision="bf16"),
    "size_px": fingerprint(transform__size_px=16),
    "resize_px": fingerprint(transform__resize_px=40),
    "rectangle": fingerprint(transform__size_px=[16, 24]),
    "resize": fingerprint(transform__resize="stretch"),
    "interpolation": fingerprint(transform__interpolation="bicubic"),
    "mean": fingerprint(transform__mean=[0.1, 0.0, 0.0]),
    "std": fingerprint(transform__std=[1.0, 1.0, 0.9]),
    "limit_rows": fingerprint(run__limit_rows=3),
    "id_column": fingerprint(source__id_column="id"),
    "image_column": fingerprint(source__image_column="picture"),
    "pass_through": fingerprint(source__pass_through=["n"]),
    "published name": fingerprint(source__pass_through={"m": "n"}),
    "max_image_px": fingerprint(source__max_image_px=10),
    "max_image_bytes": fingerprint(source__max_image_bytes=10),
}


@pytest.mark.parametrize("change", OTHER_WORK)
def test_everything_that_decides_predictions_changes_the_fingerprint(change: str):
    assert OTHER_WORK[change] != fingerprint()


def test_a_passed_column_with_the_name_of_a_size_is_refused():
    inputs = replace(inputs_of(EXTENTS), pass_through=pa.schema([("width_px", pa.int32())]))
    cure = 'width_px is a column that the output makes; .* pass_through: {"source_width_px": "w"}'
    with pytest.raises(JobError, match=cure):
        fingerprint(inputs, source__pass_through={"width_px": "w"})


def test_a_column_of_the_task_with_the_name_of_another_is_refused():
    model = replace(SPEC, task=TaskSpec("regress", targets=("uri",)))
    with pytest.raises(JobError, match="column 'uri' of the outputs is taken"):
        fingerprint(spec=model)


@pytest.mark.parametrize("field", ["max_image_px", "max_image_bytes"])
def test_a_limit_of_decoding_is_part_of_what_decides_predictions(field: str):
    model = replace(SPEC, weights_uri="w.safetensors", weights_sha256="1" * 64)
    usual, lower = (
        make_plan(some_job, inputs_of(EXTENTS), model, batch_size=8)
        for some_job in (job(), job(**{f"source__{field}": 1000}))
    )
    assert usual.predictor_key != lower.predictor_key


def test_the_code_of_what_reads_prepares_and_predicts_counts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("pipeline.planning.plan.code_digest", lambda _, name: f"code of {name}")
    usual = job_extensions(job(), SPEC)
    assert {words.partition(" ")[0] for words in usual} == {"source", "input", "task", "engine"}


def test_columns_that_pass_through_are_published_with_the_tasks():
    plan = replace(planned([]), pass_through=pa.schema([("city", pa.string())]))
    published = plan.prediction_schema()
    assert published.field("city").type == pa.string()
    assert {*plan.task_fields.names} < {*published.names}


def test_a_plan_keeps_skipped_files_and_row_settings():
    inputs = inputs_of(shard_extents([[3]]))
    skipped = replace(inputs.skipped, files={"extension": 7})
    made = make_plan(job(), replace(inputs, skipped=skipped), SPEC, batch_size=8)
    assert made.skipped.total == 7
    other = make_plan(job(source__id_column="key"), inputs, SPEC, batch_size=8)
    assert (len(made.row_settings), made.row_settings != other.row_settings) == (64, True)


def test_no_two_changes_have_the_same_fingerprint():
    assert len(set(OTHER_WORK.values())) == len(OTHER_WORK)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("gates__max_error_pct", 50.0),
        ("gates__min_rows", 1),
        ("resources__num_gpus", 1.0),
        ("resources__num_cpus", 2.0),
        ("resources__max_actors", 3),
        ("model__batch_size", 8),
        ("sink__uri", "elsewhere"),
        ("sink__partition", "date=2026-11-24"),
        ("sink__compression", "gzip"),
        ("sink__keep_versions", 0),
        ("run__lease_ttl_s", 5.0),
        ("run__slice_rows", 3),
        ("run__price_per_node_hour", 1.0),
        ("source__storage_options", {"key": "k"}),
        ("source__follow_links", False),
        ("sink__storage_options", {"key": "k"}),
        ("model__storage_options", {"key": "k"}),
    ],
)
def test_other_fields_keep_the_fingerprint(field: str, value: object):
    assert fingerprint(**{field: value}) == fingerprint()


def test_batch_size_and_credentials_of_the_weights_keep_the_fingerprint():
    assert fingerprint(batch_size=64) == fingerprint()
    assert fingerprint(spec=replace(SPEC, storage_options={"key": "k"})) == fingerprint()
    assert fingerprint(**{**WEIGHTS, "model__weights": COPY}) == OTHER_WORK["weights"]


IN_ANOTHER_PROCESS = """
import pickle, sys
from pipeline.planning.plan import make_plan
plan = make_plan(*pickle.load(sys.stdin.buffer), batch_size=8)
print(plan.fingerprint, [unit.bounds for unit in plan.units])
"""


def test_a_plan_is_the_same_in_every_process():
    made_of = (job(), inputs_of(shard_extents([[3], [700, 9]])), SPEC)
    done = subprocess.run(
        [sys.executable, "-c", IN_ANOTHER_PROCESS],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": PYTHONPATH},
        input=pickle.dumps(made_of),
        capture_output=True,
        check=True,
    )
    plan = make_plan(*made_of, batch_size=8)
    expected = f"{plan.fingerprint} {[unit.bounds for unit in plan.units]}"
    assert done.stdout.decode().strip() == expected


@given(st.sets(st.integers(0, 40)))
def test_rows_that_are_chosen_of_a_tar_are_counted_as_if_there_were_no_others(chosen: set[int]):
    rows, numbers = RowFilter(tuple(sorted(chosen))), sorted(chosen)
    assert [row for row in range(60) if rows.number(row) is not None] == numbers
    assert [rows.number(row) for row in numbers] == list(range(len(numbers)))
    assert all(
        rows.is_past(row) == (not any(other >= row for other in numbers)) for row in range(59)
    )


def test_slices_of_unknown_rows_usually_have_the_most_rows():
    units = (Unit(0, (), (), UncountedPlan(64, 1000)), Unit(1, (), (0, 32, 40)))
    assert replace(planned([]), units=units).usual_slice_rows() == [64, 32, 8]


def plan_of(categories: list[str] | str) -> Plan:
    """Plan over a feature whose categories are a list, or lie in a file."""
    feature = {"column": "kind", "unknown": "own", "categories": categories}
    model = {"factory": "models:sums", "task": "regress", "targets": ["total", "largest"]}
    job = job_of(model, {"uri": "in", "format": "parquet", "features": [feature]})
    job = job.model_copy(update={"source": with_categories(job.source)})
    return make_plan(job, inputs_of(shard_extents([[3]])), SPEC, batch_size=4)


@pytest.mark.parametrize(
    "changed", [["cat", "dog", "fox"], ["cat"], ["cat", "fox"], ["dog", "cat"]]
)
def test_other_categories_are_another_fingerprint(changed: list[str], tmp_path: Path):
    before, after = plan_of(["cat", "dog"]), plan_of(changed)
    was, now = before.fingerprint_parts, after.fingerprint_parts
    assert {name for name in was if was[name] != now[name]} == {"settings"}
    assert what_changed(was, now)
    (tmp_path / "kinds.txt").write_text("\n".join(changed) + "\n")
    of_file = plan_of(str(tmp_path / "kinds.txt"))
    assert before.fingerprint != after.fingerprint == of_file.fingerprint
