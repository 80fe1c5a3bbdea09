"""Test that stages that lost a fifth of their speed on the same hardware are named."""

from pathlib import Path

import pytest
from support.runs.published import put_report
from support.runs.report_examples import FULL, Facts, counted, document_of, report_of

from pipeline.core.errors import InfraError
from pipeline.report.document import Report, to_json
from pipeline.report.earlier_reports import compare_with_before, past_reports
from pipeline.report.sections.stages import slower_than_before
from pipeline.storage.store import Store


def with_busy(run_id: str, **busy: float) -> Facts:
    counters = FULL["counters"] | {stage: counted(busy_s) for stage, busy_s in busy.items()}
    return FULL | dict(run_id=run_id, counters=counters)


def compared(store: Store, report: Report) -> Report:
    """The report beside those that are stored."""
    return compare_with_before(past_reports(store, report), report)


@pytest.mark.parametrize(
    ("decode_s", "stages"), [(12.0, []), (15.0, []), (15.1, ["decode"]), (6.0, [])]
)
def test_a_stage_that_lost_more_than_a_fifth_is_named(decode_s: float, stages: list[str]):
    before, now = with_busy("1", decode=12.0), with_busy("2", decode=decode_s)
    slower = slower_than_before(report_of(now), report_of(before))
    assert [stage.stage for stage in slower] == stages
    for stage in slower:
        assert stage.change_pct == pytest.approx(100 * (12 / decode_s - 1), abs=0.01)
        assert stage.before == pytest.approx(9003 / 12)
        assert stage.run_id == "1"


def test_less_than_a_second_of_work_is_noise():
    before, now = with_busy("1", list=0.1, decode=0.0), with_busy("2", list=0.9)
    assert slower_than_before(report_of(now), report_of(before)) == []


def test_a_run_is_compared_with_the_newest_one_like_it(usual_store: Store):
    for facts in (
        with_busy("1", decode=6.0),
        with_busy("2", decode=12.0),
        with_busy("3", decode=1.0) | dict(hardware={"nodes": 1, "cpus": 64.0}),
        with_busy("4", decode=1.0) | dict(in_actors=frozenset(["decoder"])),
        with_busy("9", decode=1.0),  # later than the run itself
    ):
        put_report(usual_store, facts["partition"], facts["run_id"], document_of(facts))
    report = report_of(with_busy("5", decode=24.0))
    report_with = compared(usual_store, report)
    assert [(one.stage, one.run_id) for one in report_with.slower_than_before] == [("decode", "2")]
    assert Report.model_validate_json(to_json(report_with)) == report_with
    same = compared(usual_store, report_of(with_busy("5", decode=12.0)))
    assert same.slower_than_before == []


def test_without_a_run_to_compare_with_nothing_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = Store(str(tmp_path))
    report = report_of()
    assert compared(store, report).slower_than_before is None
    put_report(store, FULL["partition"], "q-0", document_of(with_busy("q-0", decode=1.0)))
    failed = report_of(status="failed", exit_code=7)
    assert compared(store, failed).slower_than_before is None

    def broken(self, prefix=""):
        raise InfraError("cannot list")

    monkeypatch.setattr(Store, "list_folders", broken)
    assert compared(store, report) == report
