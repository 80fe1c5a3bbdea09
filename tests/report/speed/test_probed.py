"""What tried rows say of a run follows from their means, the actors, and the price of the nodes."""

from __future__ import annotations

import json

import jsonschema
import pytest
from support.runs.report_examples import FULL, report_of

from pipeline.planning.probe import Probe, Spread
from pipeline.report.document import build_report, report_schema, to_json
from pipeline.report.showing.render import to_html
from pipeline.report.showing.summary import forecast_words
from pipeline.report.speed.limits import Load
from pipeline.report.speed.probed import Interval, Probed, probed

PROBE = Probe(64, Spread(100.0, 0.0), Spread(50.0, 32.0), Spread(0.5, 0.2), 6.0, 4, 2)
ROWS = 1_200


def interval(found: Interval | None) -> tuple[float, float, float]:
    assert found is not None
    return found.value, found.low, found.high


def test_minutes_are_the_loading_and_the_rows_of_each_actor_and_nodes_cost_by_them():
    found = probed(PROBE, ROWS, 40, 3.0)
    off = (1.96 + 2.6 / 63) * 0.2 / 8
    minutes = [(6 + ROWS / 4 * row_s) / 60 for row_s in (0.5, 0.5 - off, 0.5 + off)]
    assert interval(found.minutes) == pytest.approx(minutes)
    assert interval(found.cost) == pytest.approx([2 * 3.0 * each / 60 for each in minutes])
    assert interval(found.input_tokens) == (120_000, 120_000, 120_000)
    assert found.output_tokens.value == 60_000
    assert probed(PROBE, ROWS, 40, None).cost is None


def test_slices_bound_how_many_actors_there_are_and_those_of_a_run_are_its_own():
    alone = probed(PROBE, ROWS, 1, None)
    assert alone.minutes.value == pytest.approx((6 + ROWS * 0.5) / 60)
    assert probed(PROBE, ROWS, 40, None, num_actors=1).minutes == alone.minutes
    assert interval(probed(PROBE, 0, 0, 1.0).minutes) == (0, 0, 0)


def test_terminal_and_page_say_it_beside_what_it_came_to():
    forecast = probed(PROBE, ROWS, 40, 3.0)
    assert forecast_words(forecast) == (
        "2 min 36 s (2 min 21 s to 2 min 51 s), 120,000 (120,000 to 120,000) tokens read, 60,000 "
        "(50,394 to 69,606) written, cost 0.26 (0.235 to 0.285); 95%, Student's t, by 64 rows"
    )
    report = build_report(report_of(FULL).but(forecast=forecast), Load())
    jsonschema.validate(json.loads(to_json(report)), report_schema())
    assert "forecast: 2 min 36 s" in str(report)
    assert "; it took 1 min 00 s" in str(report)
    assert "were expected of the stream" in to_html(report)
    assert Probed.model_validate(json.loads(to_json(report))["forecast"]) == forecast
    assert "forecast" not in str(report_of(FULL))
