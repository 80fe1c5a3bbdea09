"""The last versions as lines of the page, and the price of a node by its labels."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.runs.report_examples import FULL, report_of

from pipeline.job.job import Run
from pipeline.report.document import Report
from pipeline.report.showing.render import to_html

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
