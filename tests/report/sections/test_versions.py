"""Test the lines of earlier versions, the classes beside theirs, and the prices of nodes."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.runs.report_examples import FULL, report_of

from pipeline.job.job import Run
from pipeline.report.document import Report
from pipeline.report.render import to_html
from pipeline.report.sections.versions import classes_of

DAYS = [f"date=2026-11-{day:02d}" for day in range(1, 21)]


def run_of(run_id: str, partition: str = DAYS[0], **changes: Any) -> Report:
    """A published run that computed all of its 1,000 rows, unless told otherwise."""
    rows = {"total": 1000, "predicted": 1000, "quarantined": 0, "computed": 1000, "resumed": 0}
    rows |= changes.pop("rows", {})
    return report_of(FULL, run_id=run_id, partition=partition, rows=rows, **changes)


@pytest.mark.parametrize(
    ("price", "nodes", "expected"),
    [
        (1.5, [], 1.5),
        ({"gpu": 3.0, "head": 1.0}, [{"head", "x"}, {"gpu", "spot"}], 2.0),
        ({"gpu": 3.0}, [{"head"}, {"gpu"}], None),
        ({"gpu": 3.0}, [], None),
        (None, [{"gpu"}], None),
    ],
)
def test_a_table_of_prices_goes_by_the_labels_of_nodes(price: Any, nodes: Any, expected: Any):
    assert Run(price_per_node_hour=price).price_of(nodes) == expected


def test_the_page_shows_the_last_fourteen_as_lines():
    past = [run_of(f"{number:02d}", day, wall_s=80.0 + number) for number, day in enumerate(DAYS)]
    page = to_html(past[-1], past[:-1])
    assert "The last 14 versions" in page
    lines = re.findall(r'polyline class="trend" points="([^"]*)"', page)
    assert {len(line.split()) for line in lines} == {14}
    took = re.search(r'aria-label="(the run took: [^"]*)"', page)
    assert took is not None
    assert took[1] == "the run took: 1 min 26 s to 1 min 39 s, now 1 min 39 s"
    assert "polyline" not in to_html(past[0]), "one version is no line"


def day(number: int, labels: dict[str, int], **changes: Any) -> Report:
    rows = sum(labels.values())
    counted = [{"label": label, "count": count} for label, count in labels.items()]
    facts = FULL | {"rows": {"total": rows, "predicted": rows, "quarantined": 0}}
    name = f"date=2026-11-{number:02d}"
    return report_of(facts | {"run_id": f"r-{number:02d}", **changes}, partition=name,
                     top_labels=counted)  # fmt: skip


def test_shares_are_compared_with_the_mean_of_earlier_partitions():
    past = [day(3, {"cat": 50, "dog": 50}), day(2, {"cat": 70, "owl": 30}), day(9, {"cat": 1})]
    classes = classes_of(day(4, {"cat": 90, "fox": 10}), past)
    shown = {share.label: (share.rows, share.pct, share.before_pct) for share in classes.shares}
    assert shown == {
        "cat": (90, 90.0, 60.0),
        "fox": (10, 10.0, 0.0),
        "dog": (0, 0.0, 25.0),
        "owl": (0, 0.0, 15.0),
    }
    assert (
        classes.beside == "the mean of the 2 partitions before, date=2026-11-02 to date=2026-11-03"
    )


def test_a_class_that_a_report_lacks_is_unknown_and_not_zero():
    many = {f"c{number}": 100 - number for number in range(10)}
    [share] = classes_of(day(4, {"new": 5}), [day(3, many)]).shares[:1]
    assert share.before_pct is None, "it may be one of those behind the first ten"
    gone = classes_of(day(4, many), [day(3, {"old": 5})]).shares
    assert "old" not in [share.label for share in gone], "it may have rows all the same"


def test_refused_runs_and_later_partitions_are_not_earlier_partitions():
    past = [day(5, {"cat": 1}), day(3, {"dog": 1}, status="refused", exit_code=3)]
    classes = classes_of(day(4, {"cat": 1}), past)
    assert (classes.beside, classes.shares[0].before_pct) == ("", None)
    assert "before" not in to_html(day(4, {"cat": 1}), past).partition("<h2>Classes")[2][:600]
