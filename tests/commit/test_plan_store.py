"""A plan is stored once and whole: it reads back exactly, and runs of a fingerprint share it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs.plan_examples import example_plan, planned, shard_extents

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import PLAN_VERSION, adopt_plan, plan_from_json, plan_to_json
from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import IMAGE_FIELDS, feature_fields, text_fields
from pipeline.planning.plan import Plan
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.skipped import Skipped, SkipReason
from pipeline.storage.store import Store

FEW_ROWS = st.lists(st.lists(st.integers(1, 60), min_size=1, max_size=5), max_size=12)


def stored(plan: Plan) -> Plan:
    """The plan as the next run finds it."""
    return plan_from_json(plan_to_json(plan, "token"), plan.fingerprint)


def test_the_loser_of_a_race_goes_on_with_the_plan_of_the_winner(
    usual_store: Store, monkeypatch: pytest.MonkeyPatch
):
    layout = Layout(None)
    extents = shard_extents([[1000]])
    theirs, ours = (planned(extents, run__slice_rows=rows) for rows in (10, 50))
    ours = replace(ours, skipped=Skipped({SkipReason.HIDDEN.value: 1}))
    assert theirs.fingerprint == ours.fingerprint
    assert theirs.units != ours.units
    create_once = Store.create_once

    def create_late(store: Store, path: str, data: bytes, token: str) -> CreateOutcome:
        create_once(store, path, plan_to_json(theirs, "theirs"), "theirs")
        return create_once(store, path, data, token)

    monkeypatch.setattr(Store, "create_once", create_late)
    adopted = adopt_plan(usual_store, layout, ours)
    assert adopted.units == theirs.units
    assert adopted.skipped == ours.skipped


def test_a_stored_plan_reads_back_exactly():
    plan = replace(
        example_plan(),
        batch_tokens=5,
        fingerprint_parts={"a": "b"},
    )
    adopted = stored(plan)
    assert adopted == plan
    document = json.loads(plan_to_json(plan, "token"))
    assert (document["version"], document["token"]) == (PLAN_VERSION, "token")
    assert (document["num_rows"], document["source_root"]) == (plan.num_rows, "/in")


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
def test_the_input_columns_of_a_stored_plan_are_those_that_it_had(fields: pa.Schema):
    plan = replace(example_plan(), fields=fields)
    assert stored(plan).fields.equals(fields, check_metadata=True)


@given(groups=FEW_ROWS, row_bytes=st.floats(0, 1e12))
def test_any_plan_reads_back_exactly(groups: list[list[int]], row_bytes: float):
    plan = planned(shard_extents(groups, row_bytes))
    assert stored(plan) == plan


def test_a_shard_of_many_row_groups_is_stored_once():
    extents = [replace(e, path="a/rather/long/name/" * 5) for e in shard_extents([[100] * 500])]
    assert plan_to_json(planned(extents), "t").count(b"a/rather/long/name/" * 5) == 1


def test_a_plan_takes_the_same_room_for_every_file():
    def size(num_files: int) -> int:
        names = [f"camera-{i % 8}/2026-11-24/photo-{i:08d}.jpg" for i in range(num_files)]
        shards = zip(shard_extents([[1]] * num_files), names, strict=True)
        extents = [replace(extent, path=name, version="0123456789" * 3) for extent, name in shards]
        return len(plan_to_json(planned(extents), "token"))

    one, two, four = map(size, (1000, 2000, 4000))
    assert four < 4000 * 130
    assert four - two == pytest.approx(2 * (two - one), rel=0.02)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: b"not json",
        lambda d: b"[]",
        lambda d: json.dumps({k: v for k, v in d.items() if k != "units"}).encode(),
        lambda d: json.dumps({**d, "fingerprint": "0" * 64}).encode(),
        lambda d: json.dumps({**d, "shards": []}).encode(),
        lambda d: json.dumps({**d, "pass_through": "AAAA"}).encode(),
        lambda d: json.dumps(d).encode()[:-9],
    ],
)
def test_a_stored_plan_that_is_damaged_is_refused(damage: Any):
    plan = example_plan()
    with pytest.raises(InfraError, match=f"^plan {plan.fingerprint[:12]}: the stored plan is dam"):
        plan_from_json(damage(json.loads(plan_to_json(plan, "t"))), plan.fingerprint)


def test_a_stored_plan_of_a_newer_version_is_refused():
    plan = example_plan()
    document = {**json.loads(plan_to_json(plan, "t")), "version": PLAN_VERSION + 1}
    with pytest.raises(
        JobError, match=f"^plan {plan.fingerprint[:12]}: written by a newer version"
    ):
        plan_from_json(json.dumps(document).encode(), plan.fingerprint)


def test_the_first_plan_of_a_fingerprint_is_adopted_by_the_next(any_store: Store):
    layout = Layout(None)
    first = planned(shard_extents([[1000]]), run__slice_rows=10)
    second = planned(shard_extents([[1000]]), run__slice_rows=50)
    assert first.fingerprint == second.fingerprint
    assert first.units != second.units
    assert adopt_plan(any_store, layout, first) == first
    assert adopt_plan(any_store, layout, second) == first
    other = planned(shard_extents([[999]]))
    assert adopt_plan(any_store, layout, other) == other


def test_credentials_are_in_no_stored_plan():
    plan = planned(shard_extents([[4, 4], [8]]), source__storage_options={"key": "hunter2"})
    stored = plan_to_json(plan, "t")
    assert b"hunter2" not in stored
    assert b"storage_options" not in stored


def test_a_stored_plan_never_says_what_is_skipped_now(tmp_path: Path):
    """Two globs without a shard have one fingerprint, so the second adopts the first's plan."""
    store, layout = Store(str(tmp_path)), Layout(None)
    skipped = Skipped(
        {SkipReason.EXTENSION: 1}, {SkipReason.EXTENSION: ("notes.txt",)}, {".txt": 1}
    )
    first, second = replace(planned([]), skipped=skipped), planned([])
    assert first.fingerprint == second.fingerprint
    assert adopt_plan(store, layout, first).skipped == skipped
    assert adopt_plan(store, layout, second).skipped == Skipped()
    assert b"notes.txt" not in store.read_bytes(layout.plan(first.fingerprint))
