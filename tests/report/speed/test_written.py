"""What a report says of texts that a model has written."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from support.runs.report_examples import FULL, ROWS, WALL_S, report_of

from pipeline.core.figures.counters import PREFILL, Counters, StageCounters
from pipeline.core.figures.slice_figures import Generated, SliceFigures, Steps, Tokens
from pipeline.report.document import report_schema, to_json
from pipeline.report.showing.render import to_html

READ, WRITTEN, LONG, REPEATING = 900_000, 300_000, 90, 45
LENGTHS = {"2": 4_000, "30": 4_553, "120": 450}


def facts(**options: Any) -> dict[str, Any]:
    counters: Counters = dict(FULL["counters"])
    SliceFigures(
        stages={PREFILL: StageCounters(ROWS, ROWS, busy_s=10.0)},
        tokens=Tokens(READ, READ + 9),
        generated=Generated(ROWS, LONG, REPEATING, WRITTEN, 30.0),
        steps=Steps(25_000, 400_000),
        output_lengths=LENGTHS,
    ).add_to(counters)
    return {**FULL, "counters": counters, **options}


def test_tokens_speed_lengths_and_cost_follow_from_the_counters():
    report = report_of(facts(price_per_node_hour=3.6, hardware={**FULL["hardware"], "nodes": 2}))
    jsonschema.validate(json.loads(to_json(report)), report_schema())
    assert dict(report.written) == {
        "input_tokens": READ,
        "output_tokens": WRITTEN,
        "prefill_tokens_per_s": pytest.approx(READ / 10),
        "decode_tokens_per_s": pytest.approx(WRITTEN / 30),
        "rows_per_step": 16.0,
        "decode_padding_pct": pytest.approx(25.0),
        "output_tokens_p50": 30,
        "output_tokens_p95": 30,
        "length_pct": pytest.approx(100 * LONG / ROWS),
        "repeating_pct": pytest.approx(100 * REPEATING / ROWS),
        "cost_per_million_tokens": pytest.approx(2 * WALL_S * 0.001 / (READ + WRITTEN) * 1e6),
    }
    assert report_of().written is None


def test_a_terminal_and_the_page_say_it():
    report = report_of(facts())
    for words in (
        "900,000 tokens read, 300,000 written",
        "90,000 and 10,000 tokens/s per actor",
        "16.0 rows at a step, 25% of them ended",
        "half of the outputs have 30 tokens or fewer, 95% 30 or fewer",
        "1% have no end",
        "0.5% repeat themselves",
    ):
        assert words in str(report)
    assert "tokens written" in to_html(report)
    assert "tokens read" not in str(report_of())
