"""Texts over which the tokenizer fails cost their own row."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from tiny_tokenizer import make_tokenizer
from tokenizers import Regex, pre_tokenizers

from pipeline.core.counters import Counters
from pipeline.core.failures import failure_columns
from pipeline.core.schema import (
    ERROR,
    ERROR_STAGE,
    MESSAGE,
    NUM_BYTES,
    NUM_TOKENS,
    SHA256,
    TRUNCATED,
)
from pipeline.preprocessing.model_input import Limits
from pipeline.preprocessing.text_input import TextInput
from pipeline.preprocessing.text_settings import TextSettings

BACKTRACKS = r"(a+)+$|\s"
"""Tries 2**n ways over n letters `a` and another one; the library stops after ten million."""
POISON = "a" * 40 + "!"


def settings_of(folder: Path, pattern: str, **more: Any) -> TextSettings:
    tokenizer = make_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return TextSettings(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), 16, **more)


def rows_of(*texts: str, is_pair: bool = False) -> pa.Table:
    ids = [f"r{index}" for index in range(len(texts))]
    column = pa.array(texts, pa.large_string())
    pair = {"_text_pair": column} if is_pair else {}
    return pa.table(
        {"row_id": ids, "_text": column, **pair, **failure_columns([None] * len(texts))}
    )


@pytest.mark.parametrize("more", [{}, {"has_pair": True}, {"has_offsets": True}])
def test_a_text_that_the_tokenizer_fails_over_costs_its_row(more: dict[str, Any], tmp_path: Path):
    texts = ["the cat", POISON, "the dog sat", "", POISON, "one"]
    rows = rows_of(*texts, is_pair="has_pair" in more)
    counters: Counters = {}
    seen = TextInput(settings_of(tmp_path, BACKTRACKS, **more))
    done = seen.prepare(rows, counters, Limits(1, 1))
    failed = [row for row, text in enumerate(texts) if text == POISON]
    errors = done[ERROR].to_pylist()
    assert [row for row, error in enumerate(errors) if error] == failed
    for row in failed:
        assert (errors[row], done[ERROR_STAGE][row].as_py()) == ("decode_error", "tokenize")
        assert "the tokenizer fails: " in done[MESSAGE][row].as_py()
        assert done[NUM_TOKENS][row].as_py() is None
        assert done[NUM_BYTES][row].as_py() == len(POISON) * (2 if "has_pair" in more else 1)
        assert len(done[SHA256][row].as_py()) == 64
    entry = counters["tokenize"]
    assert (entry["rows_in"], entry["rows_out"], entry["rows_quarantined"]) == (6, 4, 2)
    assert counters["truncated"]["rows_in"] == 4
    good = [row for row in range(len(texts)) if row not in failed]
    alone = seen.prepare(rows.take(good), {}, Limits(1, 1))
    assert done.take(good).select(alone.column_names).equals(alone)


def test_a_slice_may_have_nothing_but_such_texts(tmp_path: Path):
    seen = TextInput(settings_of(tmp_path, BACKTRACKS))
    done = seen.prepare(rows_of(POISON, POISON), {}, Limits(1, 1))
    assert done[ERROR].to_pylist() == ["decode_error"] * 2
    assert done[TRUNCATED].null_count == 2
    assert seen.arrays(done)["input_ids"].shape == (2, 0)
