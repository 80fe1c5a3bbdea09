"""Test that rows get the tokens of `transformers`, and that only rows that fail are lost."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.models.tiny_tokenizer import make_tokenizer, text_settings
from tokenizers import Regex, pre_tokenizers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import (
    ERROR,
    ERROR_STAGE,
    MESSAGE,
    NUM_BYTES,
    NUM_TOKENS,
    OFFSETS,
    SHA256,
    TOKEN_IDS,
    TOKEN_TYPES,
    TRUNCATED,
    WORD_IDS,
)
from pipeline.preprocessing.model_input import BatchLimits, Limits
from pipeline.preprocessing.texts.text_input import TextInput
from pipeline.preprocessing.texts.text_settings import TextSettings
from pipeline.preprocessing.texts.tokenizer import local_tokenizer

BACKTRACKS = r"(a+)+$|\s"
"""Tries 2**n ways over n letters `a` and another one; the library stops after ten million."""
POISON = "a" * 40 + "!"


def settings_of(folder: Path, pattern: str, **more: Any) -> TextSettings:
    tokenizer = make_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return TextSettings(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), 16, **more)


def rows_of(*texts: str, is_pair: bool = False, pairs: tuple[str, ...] | None = None) -> pa.Table:
    """Rows of texts; as pairs each with itself, or with `pairs`."""
    ids = [f"r{index}" for index in range(len(texts))]
    column = pa.array(texts, pa.large_string())
    pair = {"_text_pair": column} if is_pair else {}
    if pairs is not None:
        pair = {"_text_pair": pa.array(pairs, pa.large_string())}
    return pa.table(
        {"row_id": ids, "_text": column, **pair, **failure_columns([None] * len(texts))}
    )


@pytest.mark.parametrize(
    "more",
    [
        {"has_pair": True},
        *(pytest.param(options, marks=pytest.mark.slow) for options in ({}, {"has_offsets": True})),
    ],
)
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
    assert counters["tokenised"]["num_rows"] == 4
    good = [row for row in range(len(texts)) if row not in failed]
    alone = seen.prepare(rows.take(good), {}, Limits(1, 1))
    assert done.take(good).select(alone.column_names).equals(alone)


def test_a_tokenizer_that_was_replaced_since_the_plan_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    settings = settings_of(tmp_path, r"\s")
    make_tokenizer().save(settings.tokenizer_uri)
    with pytest.raises(JobError, match=f": sha256 is .*, expected {settings.tokenizer_sha256}"):
        local_tokenizer(settings)


def test_a_slice_may_have_nothing_but_such_texts(tmp_path: Path):
    seen = TextInput(settings_of(tmp_path, BACKTRACKS))
    done = seen.prepare(rows_of(POISON, POISON), {}, Limits(1, 1))
    assert done[ERROR].to_pylist() == ["decode_error"] * 2
    assert done[TRUNCATED].null_count == 2
    assert seen.arrays(done)["input_ids"].shape == (2, 0)


MAX_TOKENS = 16
LONG = "the cat sat on the mat and the dog ran fast or slow not one two three"
TEXTS = ("", "the cat", "one two three, x9", LONG, "a " * (MAX_TOKENS - 2), "a " * (MAX_TOKENS - 1))
"""The last two are as long as fits with special tokens, and longer by one."""
SECOND = ("red", LONG, "", "the red dog", LONG, "on")


def by_transformers(texts: tuple[str, ...], pairs: tuple[str, ...] | None = None) -> BatchEncoding:
    library = PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer(), pad_token="[PAD]", model_max_length=MAX_TOKENS
    )
    given = [list(texts)] if pairs is None else [list(texts), list(pairs)]
    return library(
        *given, truncation="longest_first", max_length=MAX_TOKENS, return_token_type_ids=True
    )


def num_tokens_uncut(*pair: str) -> int:
    return len(make_tokenizer().encode(*pair).ids)


@pytest.mark.parametrize("pairs", [None, SECOND], ids=["texts", "pairs"])
def test_tokens_are_those_of_transformers_special_ones_included(
    pairs: tuple[str, ...] | None, tmp_path: Path
):
    seen = TextInput(text_settings(tmp_path, MAX_TOKENS, has_pair=pairs is not None))
    done = seen.prepare(rows_of(*TEXTS, pairs=pairs), {}, Limits(1, 1))
    wanted = by_transformers(TEXTS, pairs)
    assert done[TOKEN_IDS].to_pylist() == wanted["input_ids"]
    assert done[NUM_TOKENS].to_pylist() == [len(ids) for ids in wanted["input_ids"]]
    if pairs is None:
        assert TOKEN_TYPES not in done.column_names
    else:
        assert done[TOKEN_TYPES].to_pylist() == wanted["token_type_ids"]
        assert {0, 1} == {number for row in wanted["token_type_ids"] for number in row}


@pytest.mark.parametrize("pairs", [None, SECOND], ids=["texts", "pairs"])
def test_a_row_is_truncated_just_where_it_has_more_tokens_than_the_model_takes(
    pairs: tuple[str, ...] | None, tmp_path: Path
):
    counters: Counters = {}
    seen = TextInput(text_settings(tmp_path, MAX_TOKENS, has_pair=pairs is not None))
    done = seen.prepare(rows_of(*TEXTS, pairs=pairs), counters, Limits(1, 1))
    rows = [(text,) for text in TEXTS] if pairs is None else zip(TEXTS, pairs, strict=True)
    is_cut = [num_tokens_uncut(*row) > MAX_TOKENS for row in rows]
    assert done[TRUNCATED].to_pylist() == is_cut
    assert {True, False} == {*is_cut}
    entry = counters["tokenised"]
    assert (entry["num_rows"], entry["num_truncated"]) == (len(TEXTS), sum(is_cut))


def test_the_mask_of_a_batch_has_the_tokens_of_each_row_and_no_padding(tmp_path: Path):
    pad = 7
    seen = TextInput(text_settings(tmp_path, MAX_TOKENS, has_pair=True, pad_id=pad))
    inputs = seen.arrays(seen.prepare(rows_of(*TEXTS, pairs=SECOND), {}, Limits(1, 1)))
    wanted = by_transformers(TEXTS, SECOND)
    rows = np.array([3, 0, 2])
    names = ("input_ids", "attention_mask", "token_type_ids")
    buffers = {name: np.full(99 * MAX_TOKENS, 9, np.int32) for name in names}
    shapes = seen.gather(inputs, rows, buffers)
    for place, row in enumerate(rows.tolist()):
        ids, types = wanted["input_ids"][row], wanted["token_type_ids"][row]
        rest = shapes["input_ids"][1] - len(ids)
        assert rest >= 0
        batches = [
            buffers[name][: np.prod(shapes[name])].reshape(shapes[name])[place].tolist()
            for name in names
        ]
        assert batches == [
            ids + [pad] * rest, [1] * len(ids) + [0] * rest, types + [0] * rest
        ]  # fmt: skip


def test_rows_of_equal_length_keep_their_order_in_batches(tmp_path: Path):
    seen = TextInput(text_settings(tmp_path, MAX_TOKENS))
    inputs = {NUM_TOKENS: np.tile(np.array([5, 3], np.int32), 200)}
    order = np.concatenate(seen.batches(inputs, np.arange(400), BatchLimits(30)))
    assert order.tolist() == [*range(0, 400, 2), *range(1, 400, 2)]


def test_a_buffer_holds_as_many_of_the_longest_rows_as_a_batch_has_tokens_for(tmp_path: Path):
    seen = TextInput(text_settings(tmp_path, 10))
    for tokens, rows in ((0, 40), (1, 1), (30, 3), (31, 4)):
        slots = seen.slots(BatchLimits(40, tokens)).values()
        assert {(slot.shape, slot.varying) for slot in slots} == {((rows, 10), (0, 1))}


@pytest.mark.parametrize("prefix", ["query: ", "the cat "])
def test_places_are_those_in_the_text_itself_whatever_its_prefix(prefix: str, tmp_path: Path):
    texts = ("the dog sat", "", "one, two")

    def places(prefix: str) -> list[list[tuple[int, int, int]]]:
        settings = text_settings(tmp_path, 64, has_offsets=True, prefix=prefix)
        done = TextInput(settings).prepare(rows_of(*texts), {}, Limits(1, 1))
        rows = []
        for ends, words in zip(done[OFFSETS].to_pylist(), done[WORD_IDS].to_pylist(), strict=True):
            tokens = zip(ends[::2], ends[1::2], words, strict=True)
            real = [(start, end, word) for start, end, word in tokens if word >= 0]
            first = real[0][2] if real else 0
            rows.append([(start, end, word - first) for start, end, word in real])
        return rows

    plain = places("")
    assert [text[start:end] for text, row in zip(texts, plain, strict=True) for start, end, _ in row
            ] == ["the", "dog", "sat", "one", ",", "two"]  # fmt: skip
    assert places(prefix) == plain
