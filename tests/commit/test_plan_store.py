"""Runs of one fingerprint share one plan, also if they store theirs at the same time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from support.runs.plan_examples import planned, shard_extents

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import adopt_plan, plan_to_json
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.skipped import Skipped, SkipReason
from pipeline.storage.store import Store


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
