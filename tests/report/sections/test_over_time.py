"""Test that rows over time add up, whatever the length of a stream."""

from pipeline.commit.staging import StagedSlice
from pipeline.report.sections.over_time import Timeline

FIRST = StagedSlice("r", 10, counters={"model_load": {"busy_s": 1.0}})


def test_bins_double_and_lose_no_row():
    timeline = Timeline()
    assert timeline.section() is None
    for second in range(1000):
        timeline.add(second + 0.5, FIRST if second in (0, 700) else StagedSlice("r", 10))
        timeline.add(second + 0.5, StagedSlice("r", 9, num_carried=9))  # nothing is computed
    section = timeline.section()
    assert section is not None
    assert (section.bin_s, sum(section.rows)) == (32.0, 10_000)
    assert set(section.rows[:-1]) == {320}
    assert (section.actors[0], section.actors[21], section.actors[-1]) == (1, 2, 2)
    assert len(section.rows) == len(section.actors) <= 60
