"""Gates: they pass up to their limit and no further."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import GateRefused
from pipeline.gates import Verdict, judge, require_pass
from pipeline.job import Gates


def verdicts(
    quarantined: int,
    planned: int,
    *,
    predicted: int | None = None,
    shards: int = 1,
    **limits: object,
) -> dict[str, Verdict]:
    gates = Gates.model_validate(limits)
    found = judge(
        gates,
        num_planned=planned,
        num_predicted=planned - quarantined if predicted is None else predicted,
        num_quarantined=quarantined,
        num_shards=shards,
    )
    return {verdict.name: verdict for verdict in found}


def passes(found: dict[str, Verdict]) -> bool:
    try:
        require_pass(list(found.values()))
    except GateRefused:
        return False
    return True


@pytest.mark.parametrize(
    ("quarantined", "planned", "limit", "status"),
    [
        (0, 1000, 5.0, "pass"),
        (50, 1000, 5.0, "pass"),
        (51, 1000, 5.0, "fail"),
        (0, 1000, 0.0, "pass"),
        (1, 1000, 0.0, "fail"),
        (999, 1000, 99.9, "pass"),
        (1000, 1000, 99.9, "fail"),
        (1000, 1000, 100.0, "pass"),
        (1, 100, 1.0, "pass"),
        (7, 100, 7.0, "pass"),
        (29, 100, 29.0, "pass"),
    ],
)
def test_the_share_of_errors_passes_up_to_its_limit(
    quarantined: int, planned: int, limit: float, status: str
):
    found = verdicts(quarantined, planned, max_error_pct=limit)
    assert found["max_error_pct"].status == status
    assert passes(found) == (status == "pass")
    assert found["max_error_pct"].value == pytest.approx(100 * quarantined / planned)
    assert found["max_error_pct"].limit == limit


@pytest.mark.parametrize(
    ("quarantined", "planned", "status"),
    [(9, 99, "off"), (98, 99, "off"), (99, 99, "fail"), (10, 100, "fail"), (1, 1, "fail")],
)
def test_few_rows_are_judged_only_where_all_failed(quarantined: int, planned: int, status: str):
    found = verdicts(quarantined, planned, max_error_pct=5.0, min_rows=100)
    assert found["max_error_pct"].status == status
    assert passes(found) == (status == "off")


@given(planned=st.integers(1, 10**6), share=st.floats(0, 1), limit=st.floats(0, 100))
def test_more_errors_never_turn_a_refusal_into_a_pass(planned: int, share: float, limit: float):
    quarantined = int(planned * share)
    more = min(planned, quarantined + 1)
    if not passes(verdicts(quarantined, planned, max_error_pct=limit)):
        assert not passes(verdicts(more, planned, max_error_pct=limit))


@given(planned=st.integers(1, 10**6), limit=st.floats(0, 99.999), min_rows=st.integers(0, 1000))
def test_a_partition_of_failures_only_is_never_published(planned: int, limit: float, min_rows: int):
    assert not passes(verdicts(planned, planned, max_error_pct=limit, min_rows=min_rows))


@pytest.mark.parametrize("predicted", [0, 89, 91, 1000])
def test_rows_that_are_not_accounted_for_are_refused_whatever_the_limits(predicted: int):
    found = verdicts(10, 100, predicted=predicted, max_error_pct=100.0, min_rows=10**6)
    assert found["conservation"].status == "fail"
    with pytest.raises(GateRefused, match=rf"{predicted + 10} of 100 planned rows"):
        require_pass(list(found.values()))
    assert verdicts(10, 100)["conservation"].status == "pass"


def test_nothing_is_refused_unless_allowed():
    found = verdicts(0, 0, shards=0)
    assert found["not_empty"].status == "fail"
    with pytest.raises(GateRefused, match=r"0 shards with 0 rows.*gates\.allow_empty"):
        require_pass(list(found.values()))
    assert passes(verdicts(0, 0, shards=0, allow_empty=True))
    assert found["max_error_pct"].status == "off"
    assert found["max_error_pct"].value is None


def test_shards_without_rows_are_as_empty_as_no_shards():
    assert not passes(verdicts(0, 0, shards=3))


def test_a_refusal_names_every_gate_that_failed():
    found = verdicts(60, 100, predicted=20)
    with pytest.raises(GateRefused) as caught:
        require_pass(list(found.values()))
    message = str(caught.value)
    assert message.startswith("nothing was published; ")
    assert "conservation: 80 of 100" in message
    assert "max_error_pct: 60 of 100 rows quarantined, 60.00%; limit 5%" in message
