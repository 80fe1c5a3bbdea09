"""The classes of a page stand beside those of the partitions before."""

from __future__ import annotations

from typing import Any

from support.runs.report_examples import FULL, report_of

from pipeline.report.document import Report
from pipeline.report.showing.render import to_html
from pipeline.report.showing.trends import classes_of


def day(number: int, labels: dict[str, int], **changes: Any) -> Report:
    rows = sum(labels.values())
    counted = [{"label": label, "count": count} for label, count in labels.items()]
    facts = FULL | {"rows": {"total": rows, "predicted": rows, "quarantined": 0}}
    name = f"date=2026-11-{number:02d}"
    return report_of(facts | {"run_id": f"r-{number:02d}", **changes}, partition=name,
                     top_labels=counted)  # fmt: skip


def test_shares_stand_beside_the_mean_of_the_partitions_before():
    past = [day(3, {"cat": 50, "dog": 50}), day(2, {"cat": 70, "owl": 30}), day(9, {"cat": 1})]
    found = classes_of(day(4, {"cat": 90, "fox": 10}), past)
    shown = {each.label: (each.rows, each.pct, each.before_pct) for each in found.shares}
    assert shown == {
        "cat": (90, 90.0, 60.0),
        "fox": (10, 10.0, 0.0),
        "dog": (0, 0.0, 25.0),
        "owl": (0, 0.0, 15.0),
    }
    assert found.beside == "the mean of the 2 partitions before, date=2026-11-02 to date=2026-11-03"


def test_what_a_report_does_not_tell_is_unknown_and_not_zero():
    many = {f"c{number}": 100 - number for number in range(10)}
    [share] = classes_of(day(4, {"new": 5}), [day(3, many)]).shares[:1]
    assert share.before_pct is None, "it may be one of those behind the first ten"
    gone = classes_of(day(4, many), [day(3, {"old": 5})]).shares
    assert "old" not in [each.label for each in gone], "it may have rows all the same"


def test_a_refused_run_and_a_later_partition_are_no_partitions_before():
    past = [day(5, {"cat": 1}), day(3, {"dog": 1}, status="refused", exit_code=3)]
    found = classes_of(day(4, {"cat": 1}), past)
    assert (found.beside, found.shares[0].before_pct) == ("", None)
    assert "before" not in to_html(day(4, {"cat": 1}), past).partition("<h2>Classes")[2][:600]
