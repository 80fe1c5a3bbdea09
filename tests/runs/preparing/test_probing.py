"""How many rows of a model that writes are tried before its slices are cut."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from support.models.generating import make_writer, writing
from support.runs.published import Rows, make_plan

from pipeline.planning.plan import Plan
from pipeline.runs.preparing.probing import num_to_try
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.units import Unit


def of_rows(number: int) -> Plan:
    unit = Unit(0, (Extent("s", 10, "v", 0, number, 1.0),), (0, number))
    return replace(make_plan(Rows()), units=(unit,))


def of_bytes(number: int) -> Plan:
    unit = Unit(0, (Extent("s", number, "v", 0, 0, 1.0),), (), UncountedPlan(4, 10**6))
    return replace(make_plan(Rows()), units=(unit,))


def test_of_few_rows_none_is_tried_and_of_many_no_more_than_a_share(tmp_path: Path):
    model = writing(make_writer(tmp_path / "m"))
    found = [num_to_try(of_rows(number), model) for number in (0, 63, 64, 320, 10**6)]
    assert found == [0, 0, 8, 32, 64]
    assert num_to_try(of_rows(320), model, num_actors=2) == 16
    assert [num_to_try(of_bytes(number), model) for number in (65_535, 65_536)] == [0, 64]
    assert num_to_try(of_rows(320), replace(model, task=replace(model.task, generation=None))) == 0
