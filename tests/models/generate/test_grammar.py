"""Test that any choice of allowed tokens is a record, by an independent validator."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from functools import cache
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.models.record_schemas import REVIEW, SCHEMAS
from support.models.tiny_tokenizer import byte_level
from support.runs.selection import examples
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipeline.core.errors import JobError
from pipeline.models.generate.grammar import Grammar
from pipeline.models.generate.records import record_of
from pipeline.models.generate.schema import MAX_ITEMS, MAX_LENGTH, canonical
from pipeline.preprocessing.texts.prompts import PromptTokenizer
from pipeline.preprocessing.texts.text_settings import Prompt

ENDS = (2,)
MOST = 300
_SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
_TEXTS = [
    '{"mood": "good", "stars": 5, "named": ["a cat", "le chat"]} true false null -12.5e+3'
] * 9
_BYTES = [f"<0x{n:02X}>" for n in range(256)]


def sentencepiece_with_bytes() -> Tokenizer:
    """As Llama 2 and Gemma have it."""
    words = [*_SPECIAL, *_BYTES, *sorted({*"".join(_TEXTS).replace(" ", "\u2581")}), "\u2581{"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


def unigram(without: str = "") -> Tokenizer:
    """As T5 and mBART have it."""
    letters = {*"".join(_TEXTS), *(chr(n) for n in range(32, 127)), *"na\u00efve\U0001f600"}
    words = [*_SPECIAL, *sorted(letters - {" ", *without}), "\u2581", "\u2581the", '":\u2581']
    tokenizer = Tokenizer(
        models.Unigram([(word, -1.0 - n) for n, word in enumerate(words)], unk_id=3)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(_SPECIAL)
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: byte_level(_TEXTS * 9, _SPECIAL, 400),
    "sentencepiece with bytes": sentencepiece_with_bytes,
    "unigram": unigram,
}


def grammar(schema: Any, tokenizer: Tokenizer) -> tuple[Grammar, PromptTokenizer]:
    known = PromptTokenizer(tokenizer, Prompt("", ""))
    return Grammar(canonical(schema), known, ENDS), known


def written(grammar: Grammar, num_tokens: int, seed: int) -> tuple[list[int], bool]:
    """Choose tokens at random; return them, and whether the record is complete."""
    rng, matcher, tokens = np.random.default_rng(seed), grammar.begin(), list[int]()
    while not matcher.is_done and len(tokens) < MOST:
        [mask] = grammar.mask([matcher], num_tokens)
        tokens.append(int(rng.choice(np.flatnonzero(mask))))
        matcher.take(tokens)
    assert not matcher.problem
    return tokens, matcher.is_done


@cache
def tokenizer_of(model_type: str = "byte-level") -> Tokenizer:
    return KINDS[model_type]()


@given(data=st.data(), seed=st.integers(0, 99))
@examples(60)
def test_any_record_of_any_schema_is_valid_or_unfinished(data: st.DataObject, seed: int):
    tokenizer = tokenizer_of()
    schema = data.draw(SCHEMAS)
    compiled, known = grammar(schema, tokenizer)
    tokens, is_complete = written(compiled, tokenizer.get_vocab_size() + 9, seed)
    assert not {*tokens} & {*range(len(_SPECIAL))}
    if is_complete:
        text = known.text(tokens)
        value = json.loads(text)
        jsonschema.Draft202012Validator(json.loads(canonical(schema))).validate(value)
        if "Infinity" not in json.dumps(value):  # a number that no column can hold
            record_of(canonical(schema)).read(text)


@pytest.mark.parametrize("model_type", KINDS)
def test_each_kind_of_tokenizer_writes_records(model_type: str):
    tokenizer = tokenizer_of(model_type)
    compiled, known = grammar(REVIEW, tokenizer)
    complete = 0
    for seed in range(20):
        tokens, is_complete = written(compiled, tokenizer.get_vocab_size(), seed)
        if is_complete:
            record_of(canonical(REVIEW)).read(known.text(tokens))
        complete += is_complete
    assert complete > 5


def test_a_record_is_told_token_by_token_or_at_once():
    tokenizer = tokenizer_of()
    compiled, _ = grammar(REVIEW, tokenizer)
    size = tokenizer.get_vocab_size()
    tokens, _ = written(compiled, size, 3)
    one, other = compiled.begin(), compiled.begin()
    for end in range(1, len(tokens) // 2):
        one.take(tokens[:end])
    other.take(tokens[: len(tokens) // 2 - 1])
    masks = compiled.mask([one, other, None], size)
    assert (masks[0] == masks[1]).all()
    assert masks[2].all()
    assert not masks[0, list(ENDS)].any()
    other.take([*tokens[: len(tokens) // 2 - 1], 0])  # no record has a control token
    assert other.is_done
    assert other.problem.isprintable()
    assert compiled.mask([other], size).all()


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: unigram(without="{"), "the model's tokenizer has no token for '{'"),
        (lambda: unigram(without="\u00ef"), "has no token for '\u00ef'"),
        (lambda: Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]")),
         "is neither byte-level BPE nor SentencePiece"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_cannot_write_records_is_refused(
    make: Callable[[], Tokenizer], problem: str
):
    with pytest.raises(JobError, match=r"^model\.generate\.schema: ") as refused:
        grammar(REVIEW, make())
    assert problem in str(refused.value)
    assert str(refused.value).isprintable()


def test_without_the_extra_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    known, find = tokenizer_of(), importlib.util.find_spec
    monkeypatch.setattr(
        "pipeline.models.generate.grammar.find_spec",
        lambda name: None if name == "llguidance" else find(name),
    )
    with pytest.raises(JobError) as refused:
        grammar(REVIEW, known)
    assert str(refused.value) == (
        "model.generate.schema: package llguidance is missing; schemas need the extra: "
        "pip install 'batch-inference-pipeline[schema]'"
    )


def of(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


def array(items: Any, most: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "maxItems": most}


_BITS = {"type": "integer", "minimum": -(2**53) + 2, "maximum": 2**53 - 2}
LARGEST = {
    "long": of(x={"type": "string", "maxLength": MAX_LENGTH}),
    "many strings": of(**{f"p{n}": {"type": "string", "maxLength": 32} for n in range(250)}),
    "many optional": {**of(**{f"p{n}": _BITS for n in range(250)}), "required": []},
    "arrays in arrays": of(x=array(array(array({"type": "number"}, 340), 340), 340)),
    "one array": of(x=array(of(y={"anyOf": [{"type": "string"}, {"type": "null"}]}), MAX_ITEMS)),
    "values": of(x={"enum": ["a" * 50 + f"{n}" for n in range(1_000)]}),
    "numbers": of(**{f"p{n}": {"type": "number", "minimum": -n - 0.123456789, "maximum": n / 7
                               if n % 7 == 0 else n + 0.987654321} for n in range(250)}),
}  # fmt: skip
"""Schemas as large as the subset allows."""


@pytest.mark.parametrize("name", LARGEST)
def test_the_largest_schemas_stay_within_the_limits(name: str):
    started = time.process_time()
    tokenizer = tokenizer_of()
    compiled, _ = grammar(LARGEST[name], tokenizer)
    for seed in range(3):
        written(compiled, tokenizer.get_vocab_size(), seed)  # it asserts that there is no problem
    assert time.process_time() - started < 30
