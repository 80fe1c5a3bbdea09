"""What is carried over is told before it is done, shard by shard and in all."""

from __future__ import annotations

import numpy as np
import pytest
from support.runs.plan_examples import planned, shard_extents

from pipeline.commit.staging import StagedSlice
from pipeline.core.figures.counters import Counters
from pipeline.core.figures.histograms import Distribution
from pipeline.core.figures.slice_figures import LookedUp, SliceFigures
from pipeline.planning.carried import Carried, Source
from pipeline.planning.carrying import Division, ShardRows
from pipeline.report.recording.carried_rows import carried_section, first_shards, plan_facts
from pipeline.report.recording.recorder import RunRecorder
from pipeline.report.recording.rows import KeptRows

SOURCES = (
    Source("date=2026-11-24", 3, "token"),
    Source("date=2026-11-23", 1, "token"),
    Source(None, 9, "token"),
)
SHARDS = (
    ShardRows("in/a", "unchanged", 90, 10),
    ShardRows("in/b", "unchanged", 100, 0),
    ShardRows("in/c", "changed", 0, 30),
    ShardRows("in/d", "new", 0, 7),
    ShardRows("in/e", "gone", 0, 0, 12),
)


def division(*shards: ShardRows, by_content: bool = False) -> Division:
    """Of 90 rows of the first source and 100 of the second; four rows are checked."""
    runs = np.array([[0, 0, 0, 5, 60], [0, 2, 0, 70, 30], [1, 0, 1, 0, 100]], np.int64)
    carried = Carried(SOURCES, runs, np.zeros((4, 4), np.int64), by_content)
    return Division(planned(shard_extents([[5]])), carried, shards or SHARDS)


def test_the_rows_of_a_division_are_summed_up_by_what_becomes_of_them():
    section = carried_section(division(), ["pillow 12.2.0 -> 13.0.0"])
    told = section.model_dump(exclude_none=True)
    assert told == {
        "rows": 190,
        "looked_at": 3,
        "sources": [
            {"partition": "date=2026-11-24", "version": 3, "rows": 90},
            {"partition": "date=2026-11-23", "version": 1, "rows": 100},
        ],
        "new_rows": 7,
        "changed_rows": 30,
        "failed_rows": 6,
        "gone_rows": 12,
        "checked_rows": 4,
        "changed_libraries": ["pillow 12.2.0 -> 13.0.0"],
    }
    assert len(carried_section(division(by_content=True)).sources) == 3


def test_rows_that_only_reading_counts_are_unknown_and_not_none():
    section = carried_section(division(*SHARDS, ShardRows("in/f.tar", "new", 0, None)))
    assert (section.new_rows, section.changed_rows) == (None, 30)


def test_the_plan_tells_of_each_shard_and_the_terminal_of_the_first_that_are_computed():
    facts = plan_facts(carried_section(division()), SHARDS)
    assert facts["shards"][0] == {
        "uri": "in/a", "state": "unchanged", "carried": 90, "computed": 10, "gone": 0,
    }  # fmt: skip
    assert len(facts["shards"]) == len(SHARDS)
    assert [shard["uri"] for shard in first_shards(facts)["shards"]] == ["in/c", "in/d", "in/e"]
    many = [ShardRows(f"in/{n}", "new", 0, 1) for n in range(1_008)]
    shown = first_shards(plan_facts(carried_section(division()), many))
    assert len(shown["shards"]) == 8
    assert shown["more_shards"] == "1,000, in --json"


def recorder() -> RunRecorder:
    """Of a run that keeps 190 rows and has computed 47."""
    record = RunRecorder("r-1", "date=2026-11-25")
    record.add("computed", StagedSlice("r", 40, reasons={"empty": 6}))
    record.add("resumed", StagedSlice("s", 7))
    record.tiled([])
    record.keep(KeptRows(190, {}, Distribution(), None, "fingerprint"))
    return record


def test_kept_rows_are_carried_and_not_resumed_and_the_manifest_has_what_is_known():
    record = recorder()
    assert record.report("published", 0).rows.resumed == 197, "a retry resumes what it keeps"
    record.carried(**dict(carried_section(division())))
    record.carried(copied_parts=2, copied_bytes=4096, reads=1, read_bytes=10)
    rows = record.report("published", 0).rows
    assert (rows.computed, rows.resumed, rows.carried) == (40, 7, 190)
    facts = record.carried_facts
    assert (facts["rows"], facts["copied_bytes"]) == (190, 4096)
    assert None not in facts.values()


def test_rows_that_were_found_by_their_content_are_carried_and_not_computed():
    record = recorder()
    planned = carried_section(division(by_content=True))
    record.carried(**dict(planned))
    counters = Counters()
    SliceFigures(looked_up=LookedUp(50, 32, 3)).add_to(counters)
    for origin, num_carried in (("computed", 20), ("resumed", 10)):
        staged = StagedSlice("r", 30, counters=counters, num_carried=num_carried)
        record.add(origin, staged)
    report = record.report("published", 0)
    assert (report.rows.computed, report.rows.resumed) == (40 + 10, 7 + 20)
    assert report.rows.carried == report.carried.rows == 190 + 30
    assert (report.carried.content_rows, report.carried.lookup_failed_rows) == (30, 6)
    assert report.carried.checked_rows == planned.checked_rows + 2 * 32 - 30
    assert record.carried_facts["rows"] == 220
    assert record.num_done == 40 + 7 + 60


def test_what_could_not_be_carried_after_all_is_no_longer_told():
    record = recorder()
    record.carried(rows=190)
    record.checked(16, ["a: expected x, found y"])
    record.not_carried("a part cannot be read", looked_at=1)
    assert (record.num_checked, record.differing, record.carried_facts) == (0, (), {})
    report = record.report("published", 0)
    assert "nothing carried over: a part cannot be read" in str(report)


@pytest.mark.parametrize("looked_at", [0, 2])
def test_a_first_run_does_not_speak_of_it(looked_at: int):
    record = recorder()
    record.not_carried("the weights changed", looked_at)
    text = str(record.report("published", 0))
    assert ("nothing carried over: the weights changed" in text) == bool(looked_at)
