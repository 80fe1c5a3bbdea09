"""Test the tokens of a report: of texts that were read, and of texts that a model wrote."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from support.runs.report_examples import (
    FULL,
    ROWS,
    STREAMING_S,
    WALL_S,
    Facts,
    counted,
    report_of,
)

from pipeline.core.figures import (
    PREFILL,
    Counters,
    Generated,
    SliceFigures,
    StageCounters,
    Steps,
    Tokenised,
    Tokens,
)
from pipeline.report.document import report_schema, to_json
from pipeline.report.estimate import estimate
from pipeline.report.render import to_html

NUM_TOKENS, PADDED, CUT = 90_000, 100_000, 27
READ, WRITTEN, LONG, REPEATING = 900_000, 300_000, 90, 45
LENGTHS = {"2": 4_000, "30": 4_553, "120": 450}


def of_texts(padded: int = PADDED, cut: int = CUT) -> Facts:
    stages = ("list", "read", "tokenize", "transfer", "predict", "write", "publish")
    counters = {stage: counted(100.0 if stage == "predict" else 1.0) for stage in stages}
    counters["tokenised"] = Tokenised(ROWS, cut).to_dict()
    if padded:
        counters["tokens"] = Tokens(NUM_TOKENS, padded).to_dict()
    model = FULL["model"] | {"batch_size": 256, "batch_tokens": 4096}
    in_actors = frozenset(["decoder"])
    return FULL | dict(counters=counters, prepared=("tokenize",), model=model, in_actors=in_actors)


def of_written(**options: Any) -> Facts:
    counters: Counters = dict(FULL["counters"])
    SliceFigures(
        stages={PREFILL: StageCounters(ROWS, ROWS, busy_s=10.0)},
        tokens=Tokens(READ, READ + 9),
        generated=Generated(ROWS, LONG, REPEATING, WRITTEN, 30.0),
        steps=Steps(25_000, 400_000),
        output_lengths=LENGTHS,
    ).add_to(counters)
    return {**FULL, "counters": counters, **options}


def test_tokens_padding_and_cut_rows_are_shares_of_what_was_counted():
    report = report_of(of_texts())
    jsonschema.validate(json.loads(to_json(report)), report_schema())
    assert dict(report.texts) == {
        "tokens": NUM_TOKENS,
        "tokens_per_row": pytest.approx(NUM_TOKENS / ROWS),
        "tokens_per_s": pytest.approx(NUM_TOKENS / STREAMING_S),
        "padding_pct": pytest.approx(10.0),
        "truncated_rows": CUT,
        "truncated_pct": pytest.approx(100 * CUT / ROWS),
    }
    assert report.stages[2].stage == "tokenize"
    assert dict(report_of(of_texts(padded=0, cut=0)).texts) == {
        "tokens": 0,
        "tokens_per_row": None,
        "tokens_per_s": 0.0,
        "padding_pct": None,
        "truncated_rows": 0,
        "truncated_pct": 0.0,
    }
    assert report_of().texts is report_of().written is None


def test_tokens_speed_lengths_and_cost_follow_from_the_counters():
    nodes = FULL["hardware"] | {"nodes": 2}
    report = report_of(of_written(price_per_node_hour=3.6, hardware=nodes))
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


def test_a_terminal_and_the_page_say_it():
    texts, written, others = report_of(of_texts()), report_of(of_written()), report_of()
    page = to_html(texts)
    for words in (
        "10 tokens",
        "10.0% of what the model computed was padding",
        "27 rows cut (0.3%)",
        "1,500 tokens/s",
    ):
        assert words in str(texts)
        assert words in page
    assert "tokenize, transfer, predict share the slots of the actors" in page
    for words in (
        "900,000 tokens read, 300,000 written",
        "90,000 and 10,000 tokens/s per actor",
        "16.0 rows at a step, 25% of them ended",
        "half of the outputs have 30 tokens or fewer, 95% 30 or fewer",
        "1% have no end",
        "0.5% repeat themselves",
    ):
        assert words in str(written)
    assert "tokens written" in to_html(written)
    assert "tokens" not in str(others) + to_html(others)


def test_a_plan_estimates_tokens_by_those_of_the_last_run():
    past = report_of(of_texts())
    assert estimate(past, 9003, 9003, None).tokens == NUM_TOKENS
    assert estimate(past, 18006, 18006, None).tokens == 2 * NUM_TOKENS
    assert estimate(past, None, None, None).tokens is None
    assert estimate(report_of(), 9, 9, None).tokens is None
