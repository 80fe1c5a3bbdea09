"""Test that the report is valid and true, however the run ended."""

import json

import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from support.runs.report_examples import (
    BARE,
    CASES,
    FULL,
    NOT_NUMBERS,
    ROWS,
    STREAMING_S,
    WALL_S,
    ZEROS,
    Facts,
    document_of,
    report_of,
)

from pipeline.core.figures import STAGES, Isolated, StageCounters
from pipeline.report.document import REPORT_VERSION, report_schema, to_json


@pytest.fixture(scope="module")
def of_schema() -> Draft202012Validator:
    schema = report_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


@pytest.mark.parametrize("facts", CASES.values(), ids=CASES)
def test_every_report_matches_its_schema(of_schema: Draft202012Validator, facts: Facts):
    report = report_of(facts)
    document = json.loads(to_json(report))
    of_schema.validate(document)
    assert document == document_of(facts)
    assert document["version"] == REPORT_VERSION
    assert "NaN" not in to_json(report).decode()
    assert to_json(report) == to_json(report_of(facts))


def test_the_schema_is_documented_and_refuses_what_it_does_not_know(
    of_schema: Draft202012Validator,
):
    schema = of_schema.schema
    sections = [schema, *schema["$defs"].values()]
    assert all(section["description"] for section in sections)
    assert all(section["additionalProperties"] is False for section in sections)
    assert all(set(section["required"]) >= set(section["properties"]) for section in sections)
    report = document_of()
    for broken in (report | {"version": 2}, report | {"more": 1}, report | {"wall_s": "80"}):
        assert not of_schema.is_valid(broken)


def test_rates_are_rows_over_their_wall_and_busy_time():
    report = document_of()
    assert [stage["stage"] for stage in report["stages"]] == list(STAGES)
    for stage in report["stages"]:
        assert stage["rows_per_s"] * stage["wall_s"] == pytest.approx(stage["rows_out"])
        assert stage["rows_per_busy_slot_s"] * stage["busy_s"] == pytest.approx(stage["rows_out"])
        assert stage["rows_in"] == stage["rows_out"] + stage["rows_quarantined"]
        assert 0 < stage["utilisation_pct"] <= 100
    walls = {stage["stage"]: stage["wall_s"] for stage in report["stages"]}
    assert walls["list"] == walls["publish"] == WALL_S
    assert walls["predict"] == STREAMING_S
    assert report["rows_per_s"] * STREAMING_S == pytest.approx(ROWS)


@pytest.mark.parametrize("facts", [ZEROS, BARE["failed"]])
def test_what_is_not_known_is_null(facts: Facts):
    report = document_of(facts)
    assert report["rows_per_s"] is None
    assert report["cost_per_million_rows"] is None
    assert report["bottleneck"]["limit"] == "unknown"
    assert report["limits"] == []
    for stage in report["stages"]:
        assert stage["rows_per_s"] is None
        assert stage["utilisation_pct"] is None


def test_numbers_that_are_not_finite_are_null():
    report = report_of(NOT_NUMBERS)
    assert report.hardware.cpus is report.price_per_node_hour is None
    assert report.gates[0].value is report.gates[0].limit is None


def test_a_stage_that_was_not_measured_is_null_and_not_zero():
    counters = {stage: did for stage, did in FULL["counters"].items() if stage != "transfer"}
    stages = document_of(counters=counters)["stages"]
    transfer = next(stage for stage in stages if stage["stage"] == "transfer")
    assert transfer["rows_in"] is None
    assert transfer["busy_s"] is None


def test_cost_is_for_a_million_rows_of_this_run():
    cost = document_of()["cost_per_million_rows"]
    assert cost * ROWS / 1e6 == pytest.approx(1.2 * WALL_S / 3600)
    two_nodes = FULL | dict(hardware={"nodes": 2})
    assert document_of(two_nodes)["cost_per_million_rows"] == pytest.approx(2 * cost)


def test_start_up_tells_waiting_from_the_sum_of_all_processes():
    parts = {part["part"]: part for part in document_of()["startup"]}
    assert parts["model_load"]["wall_s"] == 2.0
    assert parts["model_load"]["busy_s"] == 4.0
    assert parts["ray_start"]["busy_s"] is None
    assert parts["ray_start"]["share_pct"] == pytest.approx(100 * 7 / WALL_S)


def test_the_bottleneck_is_the_busiest_group():
    neck = document_of()["bottleneck"]
    assert (neck["limit"], neck["stage"], neck["utilisation_pct"]) == ("actor", "predict", 100.0)
    assert neck["predicted_rows_per_s"] > document_of()["rows_per_s"]


def test_the_predictions_hold_the_rate_that_the_advice_promises():
    report = document_of()
    changes = {entry["change"]: entry for entry in report["predictions"]}
    rates = [entry["rows_per_s"] for entry in changes.values() if entry["rows_per_s"]]
    assert report["bottleneck"]["predicted_rows_per_s"] == max(rates)
    assert document_of(BARE["failed"])["predictions"] == []


def test_bytes_per_row_are_counted_at_every_hop():
    def hop(rows: int, bytes_in: int, bytes_out: int) -> dict[str, float]:
        return StageCounters(rows, rows, 0, bytes_in, bytes_out, 1.0).to_dict()

    counters = {
        "read": hop(10, 1000, 1000),
        "decode": hop(8, 880, 9600),
        "transform": hop(8, 9600, 4800),
        "transfer": hop(8, 4800, 4800),
        "write": hop(10, 300, 70),
        "publish": hop(100, 700, 500),
    }
    facts = FULL | dict(counters=counters)
    assert document_of(facts)["bytes_per_row"] == {
        "stored": 100,
        "to_decoder": 110,
        "to_actor": 600,
        "to_device": 600,
        "written": 7,
        "published": 5,
    }
    fused = document_of(facts, in_actors=frozenset(["decoder"]))
    assert fused["bytes_per_row"]["to_actor"] == 110
    assert (document_of(facts)["decode_in"], fused["decode_in"]) == ("tasks", "actors")


def test_bytes_per_row_that_were_not_measured_are_null():
    for facts in (ZEROS, BARE["failed"]):
        assert set(document_of(facts)["bytes_per_row"].values()) == {None}
    assert document_of(BARE["failed"])["decode_in"] is None


def test_stages_in_the_actors_have_the_slots_of_the_actors():
    slots = FULL["slots"] | {"decode": 0.0, "transform": 0.0}
    both = frozenset(["decoder", "writer"])
    report = document_of(slots=slots, in_actors=both)
    used = {stage["stage"]: stage["slots"] for stage in report["stages"]}
    assert used["decode"] == used["transform"] == used["predict"] == used["write"] == 2.0
    assert [limit["group"] for limit in report["limits"]] == ["reader", "actor", "cores"]
    stages = {stage["stage"]: stage["busy_s"] for stage in report["stages"]}
    theirs = sum(stages[name] for name in ("decode", "transform", "transfer", "predict", "write"))
    assert report["limits"][1]["busy_s"] == pytest.approx(theirs)
    assert (report["decode_in"], report["write_in"]) == ("actors", "actors")


def test_an_unknown_fact_is_refused():
    with pytest.raises(ValidationError, match="cores"):
        document_of(hardware={"cores": 4})


def test_isolated_rows_are_counted_and_zero_without_any():
    isolated = Isolated(256, 2, 5, 9.0).to_dict()
    facts = FULL | dict(counters={**FULL["counters"], "isolated": isolated})
    report = document_of(facts)
    assert report["isolation"] == {"dead_processes": 5, "rows": 256, "quarantined": 2}
    assert [stage["stage"] for stage in report["stages"]] == list(STAGES)
    assert set(document_of()["isolation"].values()) == {0}
