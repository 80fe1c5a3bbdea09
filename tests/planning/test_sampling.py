"""Test that samples are rows of the input, spread over it, and reproducible."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.tars import Entry, pack
from support.runs.plan_examples import SPEC, job

from pipeline.planning.plan import Plan, make_plan
from pipeline.planning.sampling import sample_rows, sample_units
from pipeline.sources.listing.inputs import list_inputs
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

NUM_SHARDS, ROWS_PER_SHARD = 20, 30
NUM_NULL = 2


@pytest.fixture(params=["parquet", "webdataset"])
def sampled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Plan, Reader]:
    """A plan of 20 units of 30 rows, of which some cannot be read."""
    for shard in range(NUM_SHARDS):
        images = [b"image %d %d" % (shard, row) for row in range(ROWS_PER_SHARD)]
        if request.param == "parquet":
            if shard < NUM_NULL:
                images[3] = None  # type: ignore[call-overload]
            table = pa.table({"image": pa.array(images, pa.binary())})
            pq.write_table(table, tmp_path / f"{shard:02}.parquet")
        else:
            entries = [Entry(f"k{row}.jpg", image) for row, image in enumerate(images)]
            (tmp_path / f"{shard:02}.tar").write_bytes(pack(entries))
    wanted = job(source__uri=str(tmp_path), source__format=request.param, run__slice_rows=30)
    inputs = list_inputs(wanted.source, max_extent_rows=ROWS_PER_SHARD)
    plan = make_plan(wanted, inputs, SPEC, batch_size=30)
    return plan, Reader(Store(inputs.root), wanted.source, inputs.pass_through, inputs.fields)


@pytest.mark.parametrize("num_rows", [1, 16, 100, 300])
def test_a_sample_has_as_many_rows_of_several_units(sampled: tuple[Plan, Reader], num_rows: int):
    plan, reader = sampled
    assert len(plan.units) == NUM_SHARDS
    units, seed = sample_units(plan, num_rows)
    assert len({unit.index for unit in units}) == 16
    rows = sample_rows(reader, units, num_rows, seed)
    ids = rows["row_id"].to_pylist()
    assert len({*ids}) == len(ids)
    # Rows that cannot be read are left out.
    assert num_rows - NUM_NULL <= len(ids) <= num_rows
    assert rows["error"].null_count == len(ids)
    # The row is in the id of a table's row, and in the URI of a tar's.
    both = zip(ids, rows["uri"].to_pylist(), strict=True)
    places = [(uri if "#" in uri else row_id).partition("#") for row_id, uri in both]
    shards = {shard for shard, _, _ in places}
    assert len(shards) >= min(len(ids) // ROWS_PER_SHARD, 16)
    assert num_rows < 100 or len(shards) > 14
    assert num_rows < 100 or len({row for _, _, row in places}) > 15, "not the first rows of each"


def test_the_same_rows_are_sampled_each_time_and_others_for_another_number(
    sampled: tuple[Plan, Reader],
):
    plan, reader = sampled

    def ids(num_rows: int) -> list[str]:
        units, seed = sample_units(plan, num_rows)
        return sample_rows(reader, units, num_rows, seed)["row_id"].to_pylist()

    assert ids(50) == ids(50)
    assert ids(51)[:50] != ids(50)


def test_a_small_input_is_sampled_whole(tmp_path: Path):
    pq.write_table(pa.table({"image": [b"a", b"b", b"c"]}), tmp_path / "a.parquet")
    wanted = job(source__uri=str(tmp_path))
    inputs = list_inputs(wanted.source, max_extent_rows=9)
    plan = make_plan(wanted, inputs, SPEC, batch_size=4)
    reader = Reader(Store(inputs.root), wanted.source, inputs.pass_through, inputs.fields)
    units, seed = sample_units(plan, 10)
    rows = sample_rows(reader, units, 10, seed)
    assert sorted(rows["row_id"].to_pylist()) == [f"a.parquet#{row}" for row in range(3)]


def test_a_tar_is_a_unit_and_with_a_limit_of_rows_all_are_one(tmp_path: Path):
    for name in "abc":
        (tmp_path / f"{name}.tar").write_bytes(pack([Entry("k.jpg", b"x")]))
    fields = {"source__uri": str(tmp_path), "source__format": "webdataset", "run__slice_rows": 7}
    for limit, shards in (
        (None, [["a.tar"], ["b.tar"], ["c.tar"]]),
        (5, [["a.tar", "b.tar", "c.tar"]]),
    ):
        wanted = job(**fields, run__limit_rows=limit)
        inputs = list_inputs(wanted.source, max_extent_rows=9)
        plan = make_plan(wanted, inputs, SPEC, batch_size=4)
        assert [[extent.path for extent in unit.extents] for unit in plan.units] == shards
        assert [unit.index for unit in plan.units] == [*range(len(shards))]
        for unit in plan.units:
            assert unit.cut is not None
            assert (unit.bounds, unit.cut.slice_rows, unit.cut.max_rows) == ((), 7, limit)
