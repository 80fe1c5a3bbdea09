"""Rows that lose their prediction for an earlier row of the same id are counted as quarantined."""

from __future__ import annotations

from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import Reason
from pipeline.report.slice_totals import SliceTotals


def test_a_row_that_loses_its_prediction_has_a_reason_and_no_label_any_more():
    totals = SliceTotals()
    totals.count(StagedSlice("r", 10, reasons={"empty": 2}, labels={"cat": 5, "dog": 3}))
    totals.lose({"cat": 2, "dog": 1, None: 1})
    assert totals.reasons == {"empty": 2, Reason.DUPLICATE_ID.value: 3}
    assert totals.num_quarantined == 5 == sum(totals.reasons.values())
    assert totals.distribution.labels == {"cat": 3, "dog": 2}
    (cause,) = totals.causes.top(9)
    assert (cause.reason, cause.num_rows) == (Reason.DUPLICATE_ID.value, 3)


def test_a_row_without_a_label_that_loses_its_prediction_is_counted_all_the_same():
    totals = SliceTotals()
    totals.count(StagedSlice("r", 10))
    totals.lose({"": 4})
    assert totals.reasons == {Reason.DUPLICATE_ID.value: 4}
    assert totals.num_quarantined == 4
    assert not totals.distribution.labels
