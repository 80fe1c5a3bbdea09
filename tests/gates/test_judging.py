"""Test that gates pass up to their limit and no further."""

from __future__ import annotations

import json
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import GateRefused, JobError
from pipeline.core.failures import Cause
from pipeline.core.figures import Comparison, SliceFigures, Tokenised
from pipeline.core.histograms import Distribution, Numbers
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.gate import Figures, UnreadableShards
from pipeline.gates.judging import certain_failures, early_refusal, judge
from pipeline.gates.results import GateResult, accept, how_to_accept, parse_accepted, require_pass
from pipeline.job.gates import Gates

Case = tuple[str, dict[str, Any], str, float | None]
"""A gate, what is asked of `results_of`, its status and its value."""


def facts(**values: object) -> dict[str, Any]:
    return {"facts": values}


def gates_of(limits: dict[str, object]) -> Gates:
    return Gates.model_validate_json(json.dumps(limits))


def results_of(
    quarantined: int,
    planned: int,
    *,
    predicted: int | None = None,
    shards: int = 1,
    past: Past | None = None,
    facts: dict[str, object] | None = None,
    **limits: object,
) -> dict[str, GateResult]:
    figures = Figures(
        num_planned=planned,
        num_predicted=planned - quarantined if predicted is None else predicted,
        num_quarantined=quarantined,
        num_shards=shards,
        **(facts or {}),
    )
    results = judge(gates_of(limits), figures, past or Past())
    for result in results:
        assert result.message
        assert "\n" not in result.message
        assert "None" not in result.message
    return {result.name: result for result in results}


def passes(results: dict[str, GateResult]) -> bool:
    try:
        require_pass(list(results.values()))
    except GateRefused:
        return False
    return True


def errors(bad: int, rows: int, status: str, limit: float = 5.0, **options: object) -> Case:
    asked = {"quarantined": bad, "planned": rows, "max_error_pct": limit, **options}
    return "max_error_pct", asked, status, 100 * bad / rows


def unread(shards: int, of_shards: int, size: int, of_size: int, status: str, **more: Any) -> Case:
    """One row of 1,000 stands for each shard that cannot be read."""
    lost = UnreadableShards(shards, size, of_shards, of_size, "a.parquet: no footer")
    value = max(100 * shards / of_shards, 100 * size / of_size)
    asked = {"quarantined": shards, **facts(unreadable=lost), **more}
    return "max_error_pct", asked, status, value if status == "fail" else shards / 10


def skipped(files: int, shards: int, status: str, **options: object) -> Case:
    value = 100 * files / (files + shards) if status != "off" else None
    return (
        "max_skipped_pct",
        {**facts(num_skipped=files), "shards": shards, **options},
        status,
        value,
    )


TRUNCATED = {"truncated": 5, "empty": 1}


def reasons(caps: dict[str, float], status: str, value: float | None, **options: object) -> Case:
    asked = {"quarantined": 6, **facts(reasons=TRUNCATED), "max_reason_pct": caps, **options}
    return "max_reason_pct", asked, status, value


def agreement(compared: int, agreed: int, status: str, limit: float = 98.0) -> Case:
    check = Comparison(compared, agreed) if compared else None
    asked = {**facts(measured=SliceFigures(reference_check=check)), "min_agreement_pct": limit}
    return "min_agreement_pct", asked, status, 100 * agreed / compared if compared else None


def volume(past: tuple[int, ...], rows: int, status: str, **options: object) -> Case:
    usual = median(past) if past and status != "off" else None
    value = 100 * (rows - usual) / usual if usual else None
    return "volume", {"planned": rows, "past": Past(rows=past), **options}, status, value


def scores(low: float, high: float, **labels: int) -> dict[str, Any]:
    numbers = {"score": Numbers(low, high, {19: sum(labels.values())})}
    return facts(distribution=Distribution(labels=labels, numbers=numbers))


def constant(asked: dict[str, Any], status: str, rows: int = 1000, **options: object) -> Case:
    return "constant", {**asked, "planned": rows, **options}, status, None


def golden(compared: int, agreed: int, status: str) -> Case:
    figures = SliceFigures(golden=Comparison(compared, agreed), golden_actors=2)
    asked = {**facts(measured=figures), "golden": {"uri": "golden.parquet"}}
    return "golden", asked, status, 100 * agreed / compared if compared else None


DIFFERING = [f"{name}.jpg: expected 'cat' 0.9800, found 'dog' 0.7000" for name in "abcde"]


def carried(rows: int, checked: int, differing: int, status: str, **more: object) -> Case:
    named = DIFFERING[:differing]
    asked = facts(num_carried=rows, num_checked=checked, differing=named, **more)
    is_judged = checked and status != "off"
    return "carried", asked, status, 100 * (1 - differing / checked) if is_judged else None


def texts(cut: int, rows: int, status: str) -> Case:
    asked = facts(measured=SliceFigures(tokenised=Tokenised(rows, cut)))
    return "max_truncated_pct", asked, status, 100 * cut / rows if rows else None


NEAR, FEW, ALIKE = (900, 1100, 1000, 10, 90_000), {"min_rows": 100}, scores(0.9, 0.9, cat=1000)
CASES = [
    errors(0, 1000, "pass"),
    errors(50, 1000, "pass"),
    errors(51, 1000, "fail"),
    errors(0, 1000, "pass", 0.0),
    errors(1, 1000, "fail", 0.0),
    errors(999, 1000, "pass", 99.9),
    errors(1000, 1000, "fail", 99.9),
    errors(1000, 1000, "pass", 100.0),
    errors(1, 100, "pass", 1.0),
    errors(7, 100, "pass", 7.0),
    errors(29, 100, "pass", 29.0),
    # Few rows are judged only where all failed.
    errors(9, 99, "off", **FEW),
    errors(98, 99, "off", **FEW),
    errors(99, 99, "fail", **FEW),
    errors(10, 100, "fail", **FEW),
    errors(1, 1, "fail", **FEW),
    # Of shards that cannot be read the larger share decides, however few rows there are.
    unread(0, 8, 0, 100, "pass"),
    unread(6, 8, 3, 100, "fail"),
    unread(1, 100, 30, 100, "fail"),
    unread(1, 20, 5, 100, "warn"),
    unread(1, 20, 51, 1000, "fail"),
    unread(8, 8, 100, 100, "warn", max_error_pct=100.0),
    unread(1, 2, 1, 2, "fail", min_rows=2000),
    skipped(0, 10, "pass"),
    skipped(1, 999, "warn"),
    skipped(1, 999, "fail", skipped_mode="fail"),
    skipped(1, 3, "pass", skipped_mode="fail", max_skipped_pct=25.0),
    skipped(2, 3, "fail", skipped_mode="fail", max_skipped_pct=25.0),
    skipped(0, 0, "off", skipped_mode="fail"),
    reasons({}, "off", None),
    reasons({"truncated": 0.5}, "pass", 0.5),
    reasons({"truncated": 0.49}, "fail", 0.5),
    reasons({"out_of_memory": 0.0}, "pass", 0.0),
    reasons({"truncated": 9.0, "empty": 0.0}, "fail", 0.1),
    reasons({"truncated": 0.1}, "off", 500 / 99, planned=99, min_rows=100),
    # Of several rows one may differ.
    agreement(16, 16, "pass"),
    agreement(16, 15, "pass"),
    agreement(16, 14, "fail"),
    agreement(2, 1, "pass"),
    agreement(2, 0, "fail"),
    agreement(1, 1, "pass"),
    agreement(1, 0, "fail"),
    agreement(100, 98, "pass"),
    agreement(100, 97, "fail"),
    agreement(100, 97, "pass", 97.0),
    agreement(0, 0, "off"),
    volume(NEAR, 1000, "pass"),
    volume(NEAR, 700, "pass"),
    volume(NEAR, 699, "warn"),
    volume(NEAR, 1300, "pass"),
    volume(NEAR, 1301, "warn"),
    volume(NEAR, 200, "warn"),
    volume(NEAR, 199, "fail"),
    volume(NEAR, 5000, "warn"),
    volume(NEAR, 5001, "fail"),
    volume((), 10, "off"),
    volume((99, 99), 1, "off", min_rows=100),
    volume((0, 0), 1000, "off"),
    volume((1000,), 1, "off", **facts(is_limited=True)),
    # A collapse to a few rows is judged, and a few beside a few are not.
    volume((1000,), 3, "fail", **FEW),
    volume((3,), 1000, "fail", **FEW),
    volume((1000,), 0, "fail", **FEW),
    volume((100,), 3, "fail", **FEW),
    volume((3,), 100, "fail", **FEW),
    volume((99,), 3, "off", **FEW),
    volume((3,), 99, "off", **FEW),
    constant(ALIKE, "fail"),
    constant(ALIKE, "fail", min_rows=1000),
    constant(ALIKE, "off", min_rows=1001),
    constant(scores(0.9, 0.9 + 8e-7, cat=1000, dog=0), "fail"),
    constant(scores(0.9, 0.91, cat=1000), "pass"),
    constant(scores(0.9, 0.9, cat=999, dog=1), "pass"),
    constant({}, "off"),
    # One prediction is like no other.
    *(constant(scores(0.9, 0.9, cat=1), "off", 1, min_rows=least) for least in (0, 1, 2)),
    *(constant(scores(0.9, 0.9, cat=2), "fail", 2, min_rows=least) for least in (0, 1, 2)),
    golden(8, 8, "pass"),
    golden(8, 7, "fail"),
    golden(0, 0, "warn"),
    carried(900, 16, 0, "pass"),
    carried(900, 16, 1, "fail"),
    carried(900, 0, 0, "warn"),
    carried(0, 0, 0, "off"),
    carried(199, 0, 0, "off", is_retry=True),
    # All of them were predicted again.
    carried(0, 3, 0, "pass"),
    carried(0, 3, 1, "fail"),
    texts(50, 1000, "pass"),
    texts(51, 1000, "warn"),
    texts(99, 99, "off"),
    texts(0, 0, "off"),
]
MODES = {
    "max_error_pct": "error_mode",
    "max_skipped_pct": "skipped_mode",
    "max_reason_pct": "reason_mode",
    "min_agreement_pct": "agreement_mode",
    "max_truncated_pct": "truncated_mode",
    "carried": "carried_mode",
}


def with_mode(asked: dict[str, Any], gate: str, mode: str) -> dict[str, Any]:
    if gate in MODES:
        return {**asked, MODES[gate]: mode}
    return {**asked, gate: {**asked.get(gate, {}), "mode": mode}}


@pytest.mark.parametrize(("gate", "asked", "status", "value"), CASES)
def test_a_gate_passes_up_to_its_limit_and_obeys_its_mode(
    gate: str, asked: dict[str, Any], status: str, value: float | None
):
    asked = {"quarantined": 0, "planned": 1000, **asked}
    result = results_of(**asked)[gate]
    assert result.status == status, result.message
    assert result.value == (None if value is None else pytest.approx(value))
    assert passes({gate: result}) == (status != "fail")
    warned = results_of(**with_mode(asked, gate, "warn"))[gate]
    assert warned.status == ("warn" if status == "fail" else status)
    off = results_of(**with_mode(asked, gate, "off"))[gate]
    assert (off.status, off.value) == ("off", None)


@given(planned=st.integers(1, 10**6), share=st.floats(0, 1), limit=st.floats(0, 100))
def test_more_errors_never_turn_a_refusal_into_a_pass(planned: int, share: float, limit: float):
    quarantined = int(planned * share)
    more = min(planned, quarantined + 1)
    if not passes(results_of(quarantined, planned, max_error_pct=limit)):
        assert not passes(results_of(more, planned, max_error_pct=limit))


@given(planned=st.integers(1, 10**6), limit=st.floats(0, 99.999), min_rows=st.integers(0, 1000))
def test_a_partition_of_failures_only_is_never_published(planned: int, limit: float, min_rows: int):
    assert not passes(results_of(planned, planned, max_error_pct=limit, min_rows=min_rows))


@pytest.mark.parametrize("predicted", [0, 89, 91, 1000])
def test_rows_that_are_not_accounted_for_are_refused_whatever_the_limits(predicted: int):
    results = results_of(10, 100, predicted=predicted, max_error_pct=100.0, min_rows=10**6)
    assert results["conservation"].status == "fail"
    with pytest.raises(GateRefused, match=rf"{predicted + 10} of 100 planned rows"):
        require_pass(list(results.values()))
    assert results_of(10, 100)["conservation"].status == "pass"


def test_an_empty_input_is_refused_unless_allowed():
    results = results_of(0, 0, shards=0)
    assert results["not_empty"].status == "fail"
    with pytest.raises(GateRefused, match=r"0 shards with 0 rows.*gates\.allow_empty"):
        require_pass(list(results.values()))
    allowed = results_of(0, 0, shards=0, allow_empty=True)
    assert passes(allowed)
    for result in (results["not_empty"], allowed["not_empty"]):
        assert (result.value, result.limit) == (0.0, 1.0)
    assert results["max_error_pct"].status == "off"
    assert results["max_error_pct"].value is None
    assert not passes(results_of(0, 0, shards=3))


def test_the_refusal_of_an_empty_input_counts_its_files():
    why = "in/*.HEIC matches 15 files, none read: format parquet reads .parquet .pq; skipped: ..."
    results = results_of(0, 0, shards=0, facts={"num_skipped": 15, "why_empty": why})
    with pytest.raises(GateRefused, match=r"not_empty: in/\*\.HEIC matches 15 files, none read"):
        require_pass(list(results.values()))
    assert results["max_skipped_pct"].status == "warn"


def test_a_refusal_names_the_first_carried_rows_that_differ_and_says_how_to_go_on():
    def message(num_differing: int) -> str:
        _, asked, _, _ = carried(900, 16, num_differing, "")
        return results_of(0, 1000, **asked)["carried"].message

    assert message(5).startswith("11 of 16 carried rows agree when they are predicted again;")
    assert all(row in message(5) for row in DIFFERING[:3])
    assert "; and 2 more; with --no-reuse the next run predicts all rows" in message(5)
    assert "more" not in message(3)
    assert "--no-reuse" not in message(0)


def test_a_refusal_for_shards_names_the_figures_and_one_of_them_and_is_certain_early():
    _, asked, _, _ = unread(6, 8, 30, 80, "fail")
    result = results_of(planned=1006, **asked)["max_error_pct"]
    assert result.message.startswith(
        "6 of 8 shards cannot be read, 37.50% of the bytes, e.g. a.parquet: no footer; limit 5%; "
        "6 of 1006 rows quarantined"
    )
    lost = asked["facts"]["unreadable"]
    [early] = certain_failures(Gates(), 1006, 0, {}, {}, (), lost)
    assert (early.name, early.value) == ("max_error_pct", 75.0)
    assert certain_failures(Gates(), 1006, 0, {}, {"max_error_pct": "old"}, (), lost) == []


def test_all_reasons_over_their_limit_are_named():
    caps = {"truncated": 0.1, "empty": 0.0, "model_error": 0.0}
    results = results_of(6, 1000, **facts(reasons=TRUNCATED), max_reason_pct=caps)
    message = results["max_reason_pct"].message
    assert "truncated: 5 of 1000 rows, 0.50%; limit 0.1%" in message
    assert "empty: 1 of 1000 rows" in message
    assert "model_error" not in message
    one = results_of(
        6, 1000, **facts(reasons=TRUNCATED), max_reason_pct={"truncated": 9, "empty": 0}
    )
    assert one["max_reason_pct"].message.startswith("empty")
    assert one["max_reason_pct"].limit == 0.0


def test_messages_name_constant_values_and_agreeing_rows():
    alike = results_of(0, 1000, **ALIKE)["constant"].message
    assert "all 1000 predictions are alike: label 'cat', score 0.9" in alike
    _, asked, _, _ = golden(8, 7, "fail")
    agreed = results_of(0, 1000, **asked)["golden"]
    assert agreed.message == "7 of 8 golden rows agree, on 2 actors"
    assert agreed.limit == 100.0
    assert results_of(0, 1000, facts=asked["facts"])["golden"].status == "off"


def test_a_reason_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"'cosmic_ray' is not a reason; allowed are .*truncated"):
        gates_of({"max_reason_pct": {"cosmic_ray": 1.0}})


@pytest.mark.parametrize(("mode", "status"), [("off", "off"), ("warn", "warn"), ("fail", "fail")])
def test_a_reference_check_without_rows_is_refused(mode: str, status: str):
    facts: dict[str, object] = {"measured": SliceFigures(reference_check=Comparison())}
    result = results_of(0, 1000, facts=facts, agreement_mode=mode)["min_agreement_pct"]
    assert (result.status, result.value) == (status, None)
    assert ("no row was compared with eager fp32" in result.message) == (mode != "off")


def split(cats: int, dogs: int) -> Distribution:
    numbers = {
        "score": Numbers(0.0, 1.0, {3: cats, 17: dogs}),
        "steady": Numbers(0.0, 1.0, {5: cats + dogs}),
    }
    return Distribution({"cat": cats, "dog": dogs}, numbers=numbers)


DRIFTS = [(5000, "pass"), (5700, "pass"), (6300, "warn"), (7000, "fail")]


@pytest.mark.parametrize(("cats", "status"), DRIFTS)
@pytest.mark.parametrize("gate", ["label_drift", "score_drift"])
def test_a_changed_distribution_is_drift(gate: str, cats: int, status: str):
    past = Past((1,), split(5000, 5000), "date=2026-11-23")
    # As PSI bands go, 0.1 and 0.25 are far apart; here nearer, so that both sides are the same.
    rule = {"mode": "fail", "warn_psi": 0.05, "fail_psi": 0.15}
    facts: dict[str, object] = {"distribution": split(cats, 10_000 - cats)}
    result = results_of(0, 10_000, past=past, facts=facts, **{gate: rule})[gate]
    assert result.status == status, result.message
    assert "10000 predictions against 10000 of date=2026-11-23" in result.message
    value = result.value
    assert value == round(value or 0.0, 6)
    assert result.limit == rule["fail_psi"]
    has_most = gate == "label_drift" and cats != 5000
    assert ("; most: " in result.message) == has_most
    assert (f"of {past.basis}; limit" in result.message) != has_most
    at_limit = {"mode": "fail", "warn_psi": value, "fail_psi": value}
    assert results_of(0, 10_000, past=past, facts=facts, **{gate: at_limit})[gate].status == "pass"
    softened = results_of(0, 10_000, past=past, facts=facts, **{gate: {**rule, "mode": "warn"}})
    assert softened[gate].status == ("warn" if status == "fail" else status)
    few = {**rule, "min_rows": 10_001}
    assert results_of(0, 10_000, past=past, facts=facts, **{gate: few})[gate].status == "off"


@pytest.mark.parametrize("gate", ["label_drift", "score_drift"])
@pytest.mark.parametrize(("before", "now"), [(20, 10_000), (10_000, 20)])
def test_drift_is_not_judged_if_either_side_has_few_rows(gate: str, before: int, now: int):
    past = Past((1,), split(0, before), "date=2026-11-23")
    facts: dict[str, object] = {"distribution": split(now, 0)}

    def status(min_rows: int) -> str:
        rule = {"mode": "fail", "min_rows": min_rows}
        return results_of(0, now, past=past, facts=facts, **{gate: rule})[gate].status

    assert (status(21), status(20)) == ("off", "fail")


def test_the_label_that_moved_most_is_named():
    past = Past((1,), split(5000, 5000), "version 3")
    facts: dict[str, object] = {"distribution": split(9000, 1000)}
    message = results_of(0, 10_000, past=past, facts=facts)["label_drift"].message
    assert "most: 'dog' was 50.0%, now 10.0%" in message
    assert results_of(0, 10_000, past=past, facts=facts)["label_drift"].status == "warn", (
        "by default"
    )


def test_a_first_partition_is_only_recorded():
    facts: dict[str, object] = {"distribution": split(9000, 1000)}
    results = results_of(0, 10_000, facts=facts)
    for gate in ("volume", "label_drift", "score_drift"):
        assert results[gate].status == "off"
        assert "nothing earlier" in results[gate].message


def test_only_an_accepted_failure_is_published_with_its_reason():
    results = [*results_of(60, 1000, predicted=20).values()]
    reason = {"max_error_pct": "the camera of gate 7 broke", "conservation": "no", "volume": "no"}
    by_name = {result.name: result for result in accept(results, reason)}
    accepted = by_name["max_error_pct"]
    assert (accepted.status, accepted.reason) == ("accepted", "the camera of gate 7 broke")
    assert by_name["conservation"].status == "fail"
    assert {v.name for v in by_name.values() if v.reason} == {"max_error_pct"}
    with pytest.raises(GateRefused, match="conservation") as caught:
        require_pass([*by_name.values()])
    assert "max_error_pct" not in str(caught.value)


def test_accepted_gates_are_read_from_the_command_line():
    accepted = parse_accepted(["volume=half a day: moved = twice", "constant= all black "])
    assert accepted == {"volume": "half a day: moved = twice", "constant": "all black"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("conservation=because", "cannot be accepted"),
        ("colour=because", "no such gate; there are not_empty, max_error_pct"),
        ("volume", "write volume=REASON"),
        ("volume= ", "write volume=REASON"),
        ("", "no such gate"),
    ],
)
def test_what_cannot_be_accepted_is_refused(text: str, words: str):
    with pytest.raises(JobError, match=words):
        parse_accepted([text])


@given(
    planned=st.integers(1, 10_000),
    so_far=st.integers(0, 10_000),
    more=st.integers(0, 10_000),
    limit=st.floats(0, 100),
    cap=st.floats(0, 100),
)
def test_an_early_failure_is_a_failure_at_the_end(
    planned: int, so_far: int, more: int, limit: float, cap: float
):
    so_far = min(so_far, planned)
    in_the_end = min(planned, so_far + more)
    limits = {"max_error_pct": limit, "max_reason_pct": {"empty": cap}}
    early = certain_failures(gates_of(limits), planned, so_far, {"empty": so_far}, {})
    last = results_of(in_the_end, planned, facts={"reasons": {"empty": in_the_end}}, **limits)
    assert {result.name for result in early} <= {n for n, v in last.items() if v.status == "fail"}


def test_a_run_stops_early_only_for_certain_failures():
    gates = gates_of({"max_error_pct": 5.0})
    assert certain_failures(gates, 1000, 50, {}, {}) == []
    (failed,) = certain_failures(gates, 1000, 51, {}, {})
    assert failed.name == "max_error_pct"
    assert certain_failures(gates, 1000, 51, {}, {"max_error_pct": "known"}) == []
    assert certain_failures(gates, None, 51, {}, {}) == [], "nobody knows how many rows follow"
    assert certain_failures(gates, 99, 98, {}, {}) == [], "too few rows to judge a share"
    warns = gates_of({"max_error_pct": 5.0, "error_mode": "warn"})
    assert certain_failures(warns, 1000, 999, {}, {}) == []
    message = str(early_refusal([failed], 300, 1000))
    assert message.startswith("nothing was published; max_error_pct: 51 of 1000 rows quarantined")
    assert "certain after 300 of 1000 rows" in message
    assert "finished slices are kept" in message


EMPTY = Cause("empty", "decode", "the image has 0 bytes", 20, "0000.jpg")


def test_a_refusal_says_why_rows_are_in_quarantine_and_how_to_accept_it():
    facts = {"reasons": {"empty": 20}, "causes": [EMPTY]}
    words = "(20 empty, e.g. 0000.jpg: the image has 0 bytes)"
    results = list(results_of(20, 120, facts=facts).values())
    with pytest.raises(GateRefused) as refused:
        require_pass(results)
    assert str(refused.value) == (
        f"nothing was published; max_error_pct: 20 of 120 rows quarantined, 16.67%; limit 5% "
        f"{words}; to publish anyway: --accept max_error_pct=REASON"
    )
    early = certain_failures(gates_of({}), 120, 20, {"empty": 20}, {}, [EMPTY])
    message = str(early_refusal(early, 64, 120))
    assert words in message
    assert message.endswith("; to publish anyway: --accept max_error_pct=REASON")
    caps = {"max_error_pct": 50.0, "max_reason_pct": {"empty": 1.0}}
    (failed,) = [v for v in results_of(20, 120, facts=facts, **caps).values() if v.status == "fail"]
    assert failed.name == "max_reason_pct"
    assert failed.message.endswith(words)


def test_rows_of_an_unknown_cause_are_counted_as_others():
    facts = {"reasons": {"empty": 23, "truncated": 9}, "causes": [EMPTY]}
    caps = {"max_error_pct": 50.0, "max_reason_pct": {"empty": 1.0, "truncated": 20.0}}
    result = results_of(32, 120, facts=facts, **caps)["max_reason_pct"]
    assert result.message.endswith("(20 empty, e.g. 0000.jpg: the image has 0 bytes; 3 others)")
    assert "truncated" not in result.message


WHY = "3 empty, e.g. a.jpg: the image has 0 bytes"
PASSED = GateResult("constant", "pass", None, None, "m")
LOST = GateResult("conservation", "fail", 1.0, 2.0, "80 of 100")


def refused(name: str, message: str = "m") -> GateResult:
    return GateResult(name, "fail", 0.5, 0.1, message)


@pytest.mark.parametrize(
    ("results", "why", "text"),
    [
        ([refused("volume", "few")], "", "volume: few; to publish anyway: --accept volume=REASON"),
        (
            [refused("volume", "few")],
            WHY,
            f"volume: few; quarantined: {WHY}; to publish anyway: --accept volume=REASON",
        ),
        (
            [refused("max_error_pct", f"9 of 100 ({WHY})")],
            WHY,
            f"max_error_pct: 9 of 100 ({WHY}); to publish anyway: --accept max_error_pct=REASON",
        ),
        (
            [refused("volume"), refused("label_drift"), PASSED],
            "",
            "volume: m; label_drift: m; to publish anyway: --accept volume=REASON "
            "--accept label_drift=REASON",
        ),
        ([refused("volume"), LOST], "", "volume: m; conservation: 80 of 100"),
    ],
)
def test_a_refusal_names_each_gate_the_quarantine_once_and_how_to_accept_it(
    results: list[GateResult], why: str, text: str
):
    with pytest.raises(GateRefused) as caught:
        require_pass(results, why)
    assert str(caught.value) == f"nothing was published; {text}"
    require_pass([replace(result, status="warn") for result in results], why)
    assert how_to_accept([PASSED]) == ""
