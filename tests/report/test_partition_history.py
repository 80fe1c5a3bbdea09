"""Seconds and money of runs, put together by the version that they led to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from support.runs.published import put_report
from support.runs.report_examples import FULL, document_of, report_of

import pipeline
from pipeline.core.errors import JobError
from pipeline.job.job import Run
from pipeline.report.document import Report
from pipeline.report.partition_history import History, PartitionWork, Spent, versions_of
from pipeline.report.showing.render import to_html
from pipeline.report.showing.trends import trends_of
from pipeline.storage.store import Store

DAYS = [f"date=2026-11-{day:02d}" for day in range(1, 21)]


def run_of(run_id: str, partition: str = DAYS[0], **changes: Any) -> Report:
    """A published run that computed all of its 1,000 rows, unless told otherwise."""
    rows = {"total": 1000, "predicted": 1000, "quarantined": 0, "computed": 1000, "resumed": 0}
    rows |= changes.pop("rows", {})
    return report_of(FULL, run_id=run_id, partition=partition, rows=rows, **changes)


def stopped(run_id: str, computed: int, **changes: Any) -> Report:
    rows = {"computed": computed}
    return run_of(run_id, rows=rows, status="stopped", exit_code=6, **changes)


def parts_of(spent: Spent) -> float:
    return spent.useful + spent.idle + spent.startup + spent.repeated


def only(*reports: Report) -> PartitionWork:
    [found] = versions_of(reports)
    return found


def test_the_wall_time_of_all_runs_is_divided_without_a_rest():
    found = only(run_of("2", rows={"resumed": 400, "computed": 600}), stopped("1", 400))
    assert found.seconds.total == pytest.approx(160.0)
    assert parts_of(found.seconds) == pytest.approx(160.0)
    assert (found.runs, found.seconds.startup) == (2, pytest.approx(24.0))
    assert found.seconds.repeated == 0, "what the first run computed was taken over"


def test_rows_of_which_nothing_came_are_repeated_work():
    whole = only(run_of("2"), stopped("1", 400)).seconds.repeated
    half = only(run_of("2", rows={"resumed": 200, "computed": 800}), stopped("1", 400))
    other = stopped("1", 400, fingerprint="other")
    assert half.seconds.repeated == pytest.approx(whole / 2)
    assert whole > 0
    assert only(run_of("2", rows={"resumed": 400}), other).seconds.repeated == pytest.approx(whole)
    assert only(stopped("1", 400)).seconds.repeated == 0, "a later run may take it over"


def test_carried_rows_save_what_rows_take_and_checked_ones_are_repeated():
    rows = {"computed": 500, "carried": 500}
    found = only(run_of("1", rows=rows, carried={"rows": 500, "checked_rows": 50}))
    seconds = found.seconds
    assert seconds.saved == pytest.approx(seconds.useful + seconds.repeated)
    assert seconds.repeated == pytest.approx((seconds.useful + seconds.repeated) / 10)
    assert found.carried_pct == 50
    rows = {"computed": 0, "carried": 1000}
    first, second = versions_of([run_of("1"), run_of("2", DAYS[1], rows=rows)])
    assert second.seconds.saved == pytest.approx(first.seconds.useful), "by the speed of before"


def test_a_version_is_a_row_and_so_is_work_that_led_to_none():
    found = versions_of([run_of("3"), stopped("4", 1), run_of("1"), stopped("2", 9, wall_s=1.0)])
    assert [(each.run_id, each.runs, each.status) for each in found] == [
        ("1", 1, "published"),
        ("3", 2, "published"),
        ("4", 1, "stopped"),
    ]


def test_cost_is_of_all_nodes_and_unknown_if_one_price_is():
    found = only(run_of("1", hardware={"nodes": 3}))
    assert found.cost is not None
    assert found.cost.total == pytest.approx(1.2 * 3 * 80 / 3600)
    assert parts_of(found.cost) == pytest.approx(found.cost.total)
    unpriced = run_of("2", price_per_node_hour=None)
    assert only(unpriced).cost is None
    [priced] = versions_of([unpriced], 1.2)
    assert priced.cost == only(run_of("2")).cost


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


def test_history_reads_the_last_partitions_of_an_output_or_a_job(any_store: Store):
    def told(path: str = "", **options: Any) -> History:
        given = any_store.storage_options
        return pipeline.history(any_store.url(path), storage_options=given, **options)

    with pytest.raises(JobError, match="no run has left a report"):
        told()
    for number, day in enumerate(DAYS):
        report = document_of(FULL, run_id=f"r{number:02d}", partition=day)
        put_report(any_store, day, f"r{number:02d}", report)
    put_report(any_store, DAYS[-1], "r99", {"not": "a report"})
    found = told()
    assert [each.partition for each in found.versions] == DAYS[-14:]
    few = told(from_="2026-11-03", to="2026-11-19", last=2)
    assert [each.partition for each in few.versions] == DAYS[17:19]
    assert [each.partition for each in told(f"predictions/{DAYS[4]}").versions] == [DAYS[4]]
    text = str(found)
    assert all(word in text for word in (DAYS[-1], "useful", "start-up", "cost", "decode"))
    job = {
        "source": {"uri": "in", "format": "images"},
        "model": {"name": "efficientnet-lite0"},
        "sink": {
            "uri": any_store.url(""),
            "partition": "date=${date}",
            "storage_options": any_store.storage_options,
        },
    }
    assert pipeline.history(job, last=3).to_dict()["versions"] == found.to_dict()["versions"][-3:]


def test_the_page_shows_the_last_fourteen_as_lines(tmp_path: Path):
    past = [run_of(f"{number:02d}", day, wall_s=80.0 + number) for number, day in enumerate(DAYS)]
    page = to_html(past[-1], (), trends_of(past))
    assert "The last 14 versions" in page
    lines = re.findall(r'polyline class="trend" points="([^"]*)"', page)
    assert {len(line.split()) for line in lines} == {14}
    took = re.search(r'aria-label="(all runs took: [^"]*)"', page)
    assert took is not None
    assert took[1] == "all runs took: 1 min 26 s to 1 min 39 s, now 1 min 39 s"
    assert "polyline" not in to_html(past[0], (), trends_of(past[:1])), "one version is no line"
