"""Test that carried rows are counted before the run and after it, by shard and in total."""

from __future__ import annotations

import pytest
from support.runs.plan_examples import planned, shard_extents

from pipeline.commit.manifest import Manifest
from pipeline.commit.shard_table import About, KnownShard, ShardTable
from pipeline.commit.staging import StagedSlice
from pipeline.core.figures import Counters, LookedUp, SliceFigures
from pipeline.core.histograms import Distribution, Numbers
from pipeline.core.ranges import Ranges
from pipeline.core.rows_set_aside import NOT_READ
from pipeline.report.recorder import RunRecorder
from pipeline.report.sections.carried import carried_section, first_shards, plan_facts
from pipeline.reuse.dividing import Division, ShardRows
from pipeline.reuse.finding import Earlier, Reuse
from pipeline.reuse.version_rows import Version
from pipeline.storage.store import Store

SHARDS = (
    ShardRows("in/a", "unchanged", 90, 10),
    ShardRows("in/b", "unchanged", 100, 0),
    ShardRows("in/c", "changed", 0, 30),
    ShardRows("in/d", "new", 0, 7),
    ShardRows("in/e", "gone", 0, 0, 12),
)


def reuse(*shards: ShardRows, by_content: bool = False) -> Reuse:
    """Of 90 rows of the first version and 100 of the second; none of the third."""
    plan = planned(shard_extents([[5]]))
    known = {
        "a": (0, KnownShard("in/a", 1, "1", 100, 0, Ranges.of(range(10)))),
        "b": (1, KnownShard("in/b", 1, "1", 100, 0)),
    }
    table = ShardTable(About("key", "settings", "inputs"), [])
    names = (("date=2026-11-24", 3), ("date=2026-11-23", 1), ("date=2026-11-22", 9))
    manifest = Manifest(1, "publish", "p", "f", "r", "t", "c", 0, 0, 0, 0, "", (), (), {})
    earlier = tuple(
        Earlier(Version(Store("out"), name, number, "token"), manifest, table, (), True)
        for name, number in names
    )
    division = Division(plan.units, known, shards or SHARDS)
    libraries = ("pillow 12.2.0 -> 13.0.0",)
    return Reuse(plan, division, earlier, environment=libraries, by_content=by_content)


def test_the_rows_of_a_division_are_summed_up_by_what_becomes_of_them():
    assert carried_section(reuse()).model_dump(exclude_none=True) == {
        "rows": 190,
        "looked_at": 3,
        "sources": [
            {"partition": "date=2026-11-24", "version": 3, "rows": 90},
            {"partition": "date=2026-11-23", "version": 1, "rows": 100},
        ],
        "new_rows": 7,
        "changed_rows": 30,
        "failed_rows": 10,
        "gone_rows": 12,
        "checked_rows": 0,
        "changed_libraries": ["pillow 12.2.0 -> 13.0.0"],
    }
    assert len(carried_section(reuse(by_content=True)).sources) == 3
    section = carried_section(reuse(*SHARDS, ShardRows("in/f.tar", "new", 0, None)))
    assert (section.new_rows, section.changed_rows) == (None, 30), "unknown, and not none"


def test_a_plan_lists_every_shard_and_the_terminal_the_first_computed_ones():
    facts = plan_facts(reuse())
    assert facts["shards"][0] == {
        "uri": "in/a", "state": "unchanged", "carried": 90, "computed": 10, "gone": 0,
    }  # fmt: skip
    assert [shard["uri"] for shard in first_shards(facts)["shards"]] == ["in/c", "in/d", "in/e"]
    shown = first_shards(plan_facts(reuse(*(ShardRows(f"{n}", "new", 0, 1) for n in range(1_008)))))
    assert (len(shown["shards"]), shown["more_shards"]) == (8, "1,000, in --json")


def test_carried_rows_are_those_of_the_staged_slices():
    record = RunRecorder("r-1", "date=2026-11-25")
    record.carried(**dict(carried_section(reuse(by_content=True))))
    counters = Counters()
    SliceFigures(looked_up=LookedUp(50, 20, 3)).add_to(counters)
    checked = {"num_checked": 2, "differing": ["a: expected x, found y"]}
    record.add("computed", StagedSlice("r", 40, reasons={"empty": 6}))
    record.add("computed", StagedSlice("r", 60, counters=counters, num_carried=50, **checked))
    record.add("resumed", StagedSlice("s", 7, num_carried=2))
    record.tiled([])
    report = record.report("published", 0)
    rows, carried = report.rows, report.carried
    assert (rows.computed, rows.resumed, rows.carried) == (50, 5, 52)
    assert (carried.rows, carried.content_rows, carried.lookup_failed_rows) == (52, 20, 3)
    assert (carried.checked_rows, record.differing) == (2, ["a: expected x, found y"])
    assert record.carried_facts["rows"] == 52
    assert None not in record.carried_facts.values()


def test_computed_predictions_exclude_carried_rows():
    record = RunRecorder("r-1", "date=2026-11-25")
    labels, score = {"a": 1}, {"score": Numbers(0.5, 0.5, {1: 1}).to_dict()}
    mixed = {"num_carried": 59, "sources": ["t"], "computed_labels": labels, "computed_numbers": {}}
    record.add("computed", StagedSlice("r", 60, labels={"a": 1, "b": 59}, numbers=score, **mixed))
    assert record.distribution.labels == {"a": 1, "b": 59}
    assert record.computed_distribution == Distribution(labels=labels, numbers={})
    record.add("computed", StagedSlice("r", 7, labels={"c": 7}, numbers=score))
    assert record.computed_distribution.labels == {"a": 1, "c": 7}
    assert [*record.computed_distribution.numbers] == ["score"]


def test_if_nothing_could_be_read_the_report_says_why():
    record = RunRecorder("r-1", "date=2026-11-25")
    record.carried(**dict(carried_section(reuse())))
    counters = Counters()
    SliceFigures(advice={f"{NOT_READ}: part-0 is gone": 40}).add_to(counters)
    record.add("computed", StagedSlice("r", 40, counters=counters))
    record.tiled([])
    assert "nothing carried over: predictions of an earlier" in str(record.report("published", 0))
    assert record.carried_facts == {}


@pytest.mark.parametrize("looked_at", [0, 2])
def test_a_first_run_does_not_mention_carried_rows(looked_at: int):
    record = RunRecorder("r-1", "date=2026-11-25")
    record.not_carried("the weights changed", looked_at)
    text = str(record.report("published", 0))
    assert ("nothing carried over: the weights changed" in text) == bool(looked_at)
