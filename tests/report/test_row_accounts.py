"""Test that rows that lose their prediction to a duplicate id count as quarantined."""

from __future__ import annotations

from pipeline.commit.layout import staged_name
from pipeline.commit.staging import StagedSlice
from pipeline.core.failures import Reason
from pipeline.core.slices import SliceKey
from pipeline.report.row_accounts import RowAccounts


def test_a_row_that_loses_its_prediction_has_a_reason_and_no_label_any_more():
    totals = RowAccounts()
    totals.add("computed", StagedSlice("r", 10, reasons={"empty": 2}, labels={"cat": 5, "dog": 3}))
    totals.duplicates({"cat": 2, "dog": 1, None: 1})
    assert totals.reasons == {"empty": 2, Reason.DUPLICATE_ID.value: 3}
    assert totals.num_quarantined == 5 == sum(totals.reasons.values())
    assert totals.distribution.labels == {"cat": 3, "dog": 2}
    (cause,) = [c for c in totals.top_failures() if c.stage]
    assert (cause.reason, cause.num_rows) == (Reason.DUPLICATE_ID.value, 3)


def test_a_row_without_a_label_that_loses_its_prediction_is_counted_all_the_same():
    totals = RowAccounts()
    totals.add("computed", StagedSlice("r", 10))
    totals.duplicates({"": 4})
    assert totals.reasons == {Reason.DUPLICATE_ID.value: 4}
    assert totals.num_quarantined == 4
    assert not totals.distribution.labels


def test_footers_are_of_the_attempts_that_were_counted_or_of_slices_that_were_not():
    totals = RowAccounts()
    counted, other = SliceKey(0, 0, 4, is_last=False), SliceKey(0, 4, 8, is_last=True)
    counts: dict[str, dict[str, int]] = {"reasons": {"empty": 1}, "labels": {"cat": 3}}
    totals.add("computed", StagedSlice("r", 4, name=staged_name(counted, "a1"), **counts))

    def read_again(*attempts: tuple[SliceKey, str]) -> list[str]:
        read: list[str] = []

        def footer(path: str) -> StagedSlice:
            read.append(path)
            return StagedSlice("s", 4, **counts)

        totals.recount([(key, f"staging/{staged_name(key, a)}") for key, a in attempts], footer)
        return read

    assert not read_again((counted, "a1"), (other, "b2"))
    assert len(read_again((other, "b2"), (counted, "a2"))) == 2
    assert (totals.reasons, totals.num_quarantined) == ({"empty": 2}, 2)
    assert totals.distribution.labels == {"cat": 6}
