"""What a report says of texts: tokens per row and second, padding, rows that were cut."""

import json

import jsonschema
import pytest
from support.runs.report_examples import FULL, ROWS, STREAMING_S, Facts, counted, report_of

from pipeline.core.figures.slice_figures import Tokenised, Tokens
from pipeline.report.document import report_schema, to_json
from pipeline.report.showing.render import to_html
from pipeline.report.speed.estimate import estimate

NUM_TOKENS, PADDED, CUT = 90_000, 100_000, 27


def text_facts(tokens: int = NUM_TOKENS, padded: int = PADDED, cut: int = CUT) -> Facts:
    stages = ("list", "read", "tokenize", "transfer", "predict", "write", "publish")
    counters = {stage: counted(100.0 if stage == "predict" else 1.0) for stage in stages}
    counters["tokenised"] = Tokenised(ROWS, cut).to_dict()
    if padded:
        counters["tokens"] = Tokens(tokens, padded).to_dict()
    model = FULL["model"] | {"batch_size": 256, "batch_tokens": 4096}
    in_actors = frozenset(["decoder"])
    return FULL | dict(counters=counters, prepared=("tokenize",), model=model, in_actors=in_actors)


def test_tokens_padding_and_cut_rows_are_shares_of_what_was_counted():
    report = report_of(text_facts())
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
    assert report_of().texts is None


def test_what_no_batch_has_told_is_null():
    texts = report_of(text_facts(padded=0, cut=0)).texts
    unknown = {"tokens_per_row": None, "padding_pct": None}
    assert dict(texts) == {
        "tokens": 0,
        "tokens_per_s": 0.0,
        "truncated_rows": 0,
        "truncated_pct": 0.0,
        **unknown,
    }


def test_a_terminal_and_the_page_say_it():
    report = report_of(text_facts())
    text, page = str(report), to_html(report)
    for words in (
        "10 tokens",
        "10.0% of what the model computed was padding",
        "27 rows cut (0.3%)",
        "1,500 tokens/s",
    ):
        assert words in text
        assert words in page
    assert "tokenize, transfer, predict share the slots of the actors" in page
    others = to_html(report_of())
    assert "tokens" not in others
    assert "transfer, predict share the slots of the actors. decode and transform share" in others


def test_a_plan_estimates_tokens_by_those_of_the_last_run():
    past = report_of(text_facts())
    assert estimate(past, 9003, 9003, None).tokens == NUM_TOKENS
    assert estimate(past, 18006, 18006, None).tokens == 2 * NUM_TOKENS
    assert estimate(past, None, None, None).tokens is None
    assert estimate(report_of(), 9, 9, None).tokens is None
