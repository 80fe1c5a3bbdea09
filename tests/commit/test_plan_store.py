"""Promise: a stored plan reads back exactly, and its name covers its content."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import example_plan, planned, shard_extents

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import (
    PLAN_VERSION,
    adopt_plan,
    named,
    plan_from_json,
    plan_to_json,
    read_plan,
)
from pipeline.core.errors import InfraError, JobError
from pipeline.core.failures import Reason
from pipeline.core.schema import IMAGE_FIELDS, feature_fields, text_fields
from pipeline.planning.plan import Plan
from pipeline.sources.units import Extent, Unit
from pipeline.storage.skipped import Skipped, SkipReason
from pipeline.storage.store import Store

FEW_ROWS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), max_size=12)
OTHER_EXTENTS: dict[str, dict[str, Any]] = {
    "path": {"path": "other.parquet"},
    "size": {"size_bytes": 8},
    "version": {"version": "w"},
    "ctime": {"ctime_ns": 1},
    "rows": {"num_rows": 2},
    "opened": {"reason": None},
    "reason": {"reason": Reason.MISSING},
}


def stored(plan: Plan) -> Plan:
    """The plan as later readers find it: without the texts of errors."""
    return plan_from_json(plan_to_json(plan), named(plan).work)


def without_messages(plan: Plan) -> Plan:
    units = [
        replace(unit, extents=tuple(replace(extent, message="") for extent in unit.extents))
        for unit in plan.units
    ]
    return replace(plan, units=tuple(units))


def test_a_stored_plan_reads_back_exactly():
    plan = replace(example_plan(), batch_tokens=5, fingerprint_parts={"a": "b"})
    assert stored(plan) == without_messages(plan)
    document = json.loads(plan_to_json(plan))
    assert (document["version"], document["fingerprint"]) == (2, plan.fingerprint)
    assert (document["num_rows"], document["source_root"]) == (plan.num_rows, "/in")


def test_the_plan_of_a_table_keeps_its_live_rows_and_its_columns():
    key, extent = {b"physical": b"col-1"}, Extent("a.parquet", 9, "v", 0, 6, 1.0)
    extents = (
        replace(extent.choose([1, 2, 5]), given=("x", None)),
        replace(extent, first_row=6, num_rows=2, given=("x", None)),
    )
    table = pa.schema([pa.field("text", pa.string(), metadata=key)], {b"partition_columns": b"[]"})
    plan = replace(example_plan(), units=(Unit(0, extents, (0, 5)),), table=table)
    again = stored(plan)
    assert again.units == plan.units
    assert again.table.equals(table, check_metadata=True)
    assert json.loads(plan_to_json(plan))["version"] == PLAN_VERSION
    others = [
        replace(plan, units=(Unit(0, (other, extents[1]), (0, 5)),))
        for other in (replace(extents[0], given=("y", None)), extents[0].choose([1, 2, 4]))
    ]
    assert len({named(one).work for one in (plan, *others, replace(plan, table=None))}) == 4


@pytest.mark.parametrize("change", OTHER_EXTENTS.values(), ids=OTHER_EXTENTS)
def test_the_listing_decides_the_name_of_a_plan(change: dict[str, Any]):
    bad = Extent("bad.parquet", 9, "v", 0, 1, 0.0, Reason.UNREADABLE_SHARD, "no footer")
    plan, other = (
        replace(example_plan(), units=(Unit(0, (extent,), (0, extent.num_rows)),))
        for extent in (bad, replace(bad, **change))
    )
    assert named(plan).work != named(other).work


def test_cuts_and_retried_rows_decide_the_name_of_a_plan(usual_store: Store):
    layout, extents = Layout(None), shard_extents([[1000]])
    plans = [planned(extents, run__slice_rows=rows) for rows in (10, 50)]
    assert plans[0].fingerprint == plans[1].fingerprint
    adopted = [adopt_plan(usual_store, layout, plan) for plan in plans]
    adopted += [adopt_plan(usual_store, layout, plans[0], ("token", [why])) for why in ("a", "b")]
    assert len({plan.work for plan in adopted}) == 4
    for plan in adopted:
        assert read_plan(usual_store, layout, plan.work).units == plan.units


def test_facts_that_decide_no_row_do_not_change_the_name_of_a_plan():
    plan = example_plan()
    others = [
        without_messages(plan),
        replace(plan, batch_size=9, batch_tokens=9),
        replace(plan, skipped=Skipped({SkipReason.HIDDEN.value: 1})),
    ]
    assert {named(other).work for other in others} == {named(plan).work}


@pytest.mark.parametrize(
    "fields",
    [
        IMAGE_FIELDS,
        feature_fields(3),
        feature_fields(3, ("plan",)),
        feature_fields(3).with_metadata({"lengths": "2,1"}),
        text_fields(has_pair=True),
    ],
)
def test_a_stored_plan_keeps_its_input_columns(fields: pa.Schema):
    plan = replace(example_plan(), fields=fields)
    assert stored(plan).fields.equals(fields, check_metadata=True)


@given(groups=FEW_ROWS, row_bytes=st.floats(0, 1e12))
def test_any_plan_reads_back_exactly(groups: list[list[int]], row_bytes: float):
    plan = planned(shard_extents(groups, row_bytes))
    assert stored(plan) == plan
    assert stored(plan).work == named(plan).work


def test_a_shard_of_many_row_groups_is_stored_once():
    extents = [replace(e, path="a/rather/long/name/" * 5) for e in shard_extents([[100] * 500])]
    assert plan_to_json(planned(extents)).count(b"a/rather/long/name/" * 5) == 1


def test_the_size_of_a_plan_grows_linearly_with_its_files():
    def size(num_files: int) -> int:
        names = [f"camera-{i % 8}/2026-11-24/photo-{i:08d}.jpg" for i in range(num_files)]
        shards = zip(shard_extents([[1]] * num_files), names, strict=True)
        extents = [replace(extent, path=name, version="0123456789" * 3) for extent, name in shards]
        return len(plan_to_json(planned(extents)))

    one, two, four = map(size, (1000, 2000, 4000))
    assert four < 4000 * 130
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


def renamed(document: Any) -> tuple[bytes, str]:
    """The bytes of a document and their digest, the name of the plan."""
    data = json.dumps(document).encode()
    return data, hashlib.sha256(data).hexdigest()


def with_units(document: dict[str, Any], edit: Callable[[list[dict[str, Any]]], Any]) -> Any:
    edit(document["units"])
    return document


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (lambda d: [], ""),
        (lambda d: {k: v for k, v in d.items() if k != "units"}, "'units'"),
        (lambda d: {**d, "shards": []}, "index out of range"),
        (lambda d: {**d, "pass_through": "AAAA"}, ""),
        (lambda d: with_units(d, lambda u: u[1]["extents"].pop(0)), "are not its"),
        (lambda d: with_units(d, lambda u: u.append(u[-1])), "do not follow"),
        (lambda d: with_units(d, lambda u: u.reverse()), "do not follow"),
        (lambda d: with_units(d, lambda u: u[0]["bounds"].pop()), "are not its"),
        (lambda d: with_units(d, lambda u: u[0]["bounds"].__setitem__(0, 1)), "are not its"),
        (lambda d: with_units(d, lambda u: u[0]["bounds"].reverse()), "are not its"),
    ],
)
def test_a_plan_with_gaps_or_overlaps_is_refused(edit: Any, why: str):
    document = json.loads(plan_to_json(planned(shard_extents([[40], [40]]), run__slice_rows=8)))
    data, name = renamed(edit(document))
    with pytest.raises(InfraError, match=f"^plan {name[:12]}: the stored plan is damaged: .*{why}"):
        plan_from_json(data, name)


def test_a_stored_plan_of_a_newer_version_is_refused():
    document = {**json.loads(plan_to_json(example_plan())), "version": PLAN_VERSION + 1}
    data, name = renamed(document)
    with pytest.raises(JobError, match=f"^plan {name[:12]}: written by a newer version"):
        plan_from_json(data, name)


def test_a_plan_named_by_its_fingerprint_is_read():
    plan = without_messages(example_plan())
    document = json.loads(plan_to_json(plan))
    document |= {"version": 1, "fingerprint": "f", "shards": [s[:3] for s in document["shards"]]}
    for unit in document["units"]:
        unit["extents"] = [e if len(e) == 4 else [*e, "a text"] for e in unit["extents"]]
    data = json.dumps(document).encode()
    assert plan_from_json(data, "f") == replace(plan, fingerprint="f")
    with pytest.raises(InfraError, match="is damaged"):
        plan_from_json(data, "g")


def test_no_flipped_bit_makes_another_plan(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    store, layout, rng = Store(str(tmp_path)), Layout(None), random.Random(1)
    plan = adopt_plan(store, layout, example_plan())
    path = layout.plan(plan.work)
    data = store.read_bytes(path)
    for at in rng.sample(range(8 * len(data)), 300):
        flipped = bytearray(data)
        flipped[at // 8] ^= 1 << at % 8
        with pytest.raises((InfraError, JobError)):
            plan_from_json(bytes(flipped), plan.work)
    caplog.clear()
    store.put(path, bytes(flipped))
    assert adopt_plan(store, layout, example_plan()) == plan
    assert adopt_plan(store, layout, example_plan()) == plan
    assert store.read_bytes(path) == data
    assert [record.getMessage() for record in caplog.records] == [
        f"{store.url(path)}: is damaged; written again"
    ]


def test_credentials_are_in_no_stored_plan():
    plan = planned(shard_extents([[4, 4], [8]]), source__storage_options={"key": "hunter2"})
    stored = plan_to_json(plan)
    assert b"hunter2" not in stored
    assert b"storage_options" not in stored


def test_a_stored_plan_does_not_have_the_skipped_files(tmp_path: Path):
    """Two globs without a shard have one fingerprint, and one plan."""
    store, layout = Store(str(tmp_path)), Layout(None)
    skipped = Skipped(
        {SkipReason.EXTENSION: 1}, {SkipReason.EXTENSION: ("notes.txt",)}, {".txt": 1}
    )
    first, second = replace(planned([]), skipped=skipped), planned([])
    adopted = adopt_plan(store, layout, first)
    assert adopted.skipped == skipped
    assert adopt_plan(store, layout, second).skipped == Skipped()
    assert b"notes.txt" not in store.read_bytes(layout.plan(adopted.work))
