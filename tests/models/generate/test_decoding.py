"""Test that language models write what transformers' greedy `generate` writes, in any batch."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers
from support.models.feature_writers import make_feature_writer
from support.models.language_models import (
    ENDS,
    FAMILIES,
    MESSAGES,
    NEW_TOKENS,
    TEXTS,
    choosing,
    greedy,
    library_outputs,
    library_scores,
    make_writer,
    predicted,
    prepared,
    scores_of,
    write_language_tokenizer,
    writing,
)
from support.models.snapshots import change_json, write_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.generation.logits_process import (
    ForcedEOSTokenLogitsProcessor,
    LogitsProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from pipeline.core.errors import JobError
from pipeline.core.schema import TOKEN_IDS
from pipeline.inference import library_check
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.generate.rules import AppliedRules, Row
from pipeline.inference.library_check import compare, hold_to_library
from pipeline.models.directories.opening import read_facts
from pipeline.models.generate.build import tensors_of
from pipeline.models.generate.causal import CausalDecoding
from pipeline.models.generate.spec import Generation, Rules
from pipeline.models.spec import PredictorConfig, load_module
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.texts.prompts import prompt_tokenizer

LLAMA = "llama"
FEW = BatchLimits(3, 200)
"""Rows enter and leave one after the other."""


QUICK = (LLAMA, "bart", "mamba")


def with_languages(folder: Path, **options: Any) -> Path:
    """Write a directory of BART with tokens of two languages."""
    file = make_writer(folder, "bart", **options) / "tokenizer.json"
    text = file.read_text().replace("<|im_start|>", "deu_Latn")
    file.write_text(text.replace("<|im_end|>", "__fr__"))
    return folder


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Returns a function that makes a directory of a family, or of `languages`, once."""

    def make(family: str) -> Path:
        folder = tmp_path_factory.mktemp("m") / "m"
        return with_languages(folder) if family == "languages" else make_writer(folder, family)

    return cache(make)


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES],
)
def test_texts_are_those_of_the_library(family: str, folder_of: Any):
    path = folder_of(family)
    spec = writing(path)
    rows = prepared(spec, TEXTS)
    expected = library_outputs(path, rows.column(TOKEN_IDS).to_pylist())
    actual = predicted(spec, rows, FEW)
    assert [row["text"] for row in actual] == [text.text for text in expected]
    assert [row["num_output_tokens"] for row in actual] == [len(text.tokens) for text in expected]
    is_forced = "forced_eos_token_id" in FAMILIES[family][1]
    ended = [
        "length" if len(tokens) == NEW_TOKENS and (is_forced or tokens[-1] not in ENDS) else "eos"
        for _, tokens, _ in expected
    ]
    assert [row["finish_reason"] for row in actual] == ended
    logprobs = [row["mean_logprob"] for row in actual]
    np.testing.assert_allclose(logprobs, [text.logprob for text in expected], atol=1e-4)
    inputs = [len(ids) for ids in rows.column(TOKEN_IDS).to_pylist()]
    assert [row["num_input_tokens"] for row in actual] == inputs
    assert len({len(text.tokens) for text in expected}) > 1  # they leave at different steps


@pytest.mark.parametrize("family", [LLAMA, pytest.param("t5", marks=pytest.mark.slow)])
def test_a_directory_is_held_to_what_its_library_writes(
    family: str, folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = folder_of(family)
    spec = writing(path, prompt=None, generate={"max_new_tokens": 8})
    assert re.fullmatch(r"transformers [\d.]+ on 4 texts", hold_to_library(spec))
    assert hold_to_library(choosing(path)) == ""
    with monkeypatch.context() as patch:
        patch.setattr(library_check, "_MOST_BYTES", 0)
        assert "in its preprocessing alone: the weights have" in hold_to_library(spec)
    generation = spec.task.generation
    assert generation is not None
    rules = replace(generation.rules, banned=(*range(3, 300),))
    wrong = replace(spec, task=replace(spec.task, generation=replace(generation, rules=rules)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # as the confined process has one
    with pytest.raises(JobError, match=r"predicts something else for probe .A good film\..: expec"):
        compare(str(path), wrong)


FORCED = {"forced_bos_token_id": 7, "forced_eos_token_id": 2}
RULES: list[dict[str, Any]] = [
    {"min_new_tokens": 9, "suppress_tokens": [*range(3, 90)]},
    {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2},
    {"min_length": 30, "begin_suppress_tokens": [*range(140, 357)]},
    FORCED,
    {"bad_words_ids": [[5], [200, 201], [2], *([n] for n in range(60, 357, 2))]},
]


FILE = "generation_config.json"


@pytest.mark.parametrize(
    ("family", "rules", "file"),
    [
        *(
            pytest.param(
                *(family, rules, FILE), marks=[pytest.mark.slow] * (number > 1 or family != LLAMA)
            )
            for family in (LLAMA, "bart")
            for number, rules in enumerate(RULES)
        ),
        ("bart", RULES[1], "config.json"),  # as published before there was the other file
    ],
)
def test_rules_of_the_directory_are_applied_as_the_library_does_it(
    family: str, rules: dict[str, Any], file: str, folder_of: Any, tmp_path: Path
):
    path = copytree(folder_of(family), tmp_path / "m")
    plain = writing(path)
    if file != FILE:
        (path / FILE).unlink()
    change_json(path / file, **rules)
    spec = writing(path)
    assert spec.to_dict() != plain.to_dict()
    rows = prepared(spec, TEXTS)
    expected = library_outputs(path, rows.column(TOKEN_IDS).to_pylist())
    assert [row["text"] for row in predicted(spec, rows, FEW)] == [text.text for text in expected]
    if (family, rules) != (LLAMA, FORCED):  # a prompt has more tokens than one
        assert [text.text for text in expected] != [row["text"] for row in predicted(plain, rows)]


@pytest.mark.parametrize(
    ("rules", "processor"),
    [
        (Rules(repetition_penalty=1.8), RepetitionPenaltyLogitsProcessor(1.8)),
        (Rules(no_repeat_ngram=2), NoRepeatNGramLogitsProcessor(2)),
        (
            Rules(banned_words=((7, 4, 2), (4, 8), (8, 4))),
            NoBadWordsLogitsProcessor([[7, 4, 2], [4, 8], [8, 4]]),
        ),
        (Rules(ends=(1, 2), min_length=6), MinLengthLogitsProcessor(6, [1, 2])),
        (Rules(ends=(1, 2), min_length=5), MinLengthLogitsProcessor(5, [1, 2])),
        (Rules(ends=(1,), min_new_tokens=4), MinNewTokensLengthLogitsProcessor(2, 4, [1])),
        (Rules(ends=(1,), min_new_tokens=3), MinNewTokensLengthLogitsProcessor(2, 3, [1])),
        (Rules(banned=(3, 5)), SuppressTokensLogitsProcessor([3, 5])),
        (Rules(last=(1,)), ForcedEOSTokenLogitsProcessor(6, [1])),
    ],
)
def test_each_rule_changes_logits_as_the_library_does_it(rules: Rules, processor: LogitsProcessor):
    history = [7, 4, 8, 7, 4]
    logits = torch.linspace(-2, 2, 10)[None]
    row, applied = (
        Row(0, before=history[:2]),
        AppliedRules(Generation(4, rules=rules), logits.device),
    )
    for size in range(2, len(history) + 1):  # rules note what they have seen of a row
        row.tokens = history[2:size]
        changed = applied(logits, [row])
    assert torch.equal(changed, processor(torch.tensor([history]), logits.clone()))


@pytest.mark.parametrize(("language", "token"), [("deu_Latn", 3), ("fr", 4), ("__fr__", 4)])
def test_outputs_are_in_the_language_of_the_job_as_the_library_forces_it(
    language: str, token: int, folder_of: Any
):
    path = folder_of("languages")
    spec = writing(path, generate={"language": language})
    assert spec.to_dict() != writing(path).to_dict()
    rows = prepared(spec, TEXTS[:3])
    prompts = rows.column(TOKEN_IDS).to_pylist()
    expected = library_outputs(path, prompts, forced_bos_token_id=token)
    assert [row["text"] for row in predicted(spec, rows)] == [text.text for text in expected]


def test_a_decoder_that_begins_with_a_language_begins_with_that_of_the_job(tmp_path: Path):
    path = with_languages(tmp_path / "m", decoder_start_token_id=3)  # as mBART-25
    generation = writing(path, generate={"language": "fr"}).task.generation
    assert generation is not None
    assert (generation.rules.start, generation.rules.first) == ((4,), None)


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("llama", "'de': has no effect on LlamaForCausalLM, which is told its language by the"),
        ("t5", "'de': the tokenizer of T5.* has no such language; leave it out"),
        ("languages", "'de': .* no such language; expected one of 2 such as deu_Latn, fr"),
    ],
)
def test_a_language_that_a_model_does_not_know_is_refused(
    family: str, problem: str, folder_of: Any
):
    with pytest.raises(JobError, match=rf"model\.generate\.language = {problem}") as refused:
        writing(folder_of(family), generate={"language": "de"})
    assert "\n" not in str(refused.value)


def test_spaces_before_marks_are_cleaned_where_the_library_does_it(
    folder_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = copytree(folder_of("t5"), tmp_path / "m")
    words = [*(f"w{n}" for n in range(200)), *([".", ",", "?", "!", "n't", "'s"] * 30)]
    vocabulary = {f"{word}{'' if n < 206 else n}": n for n, word in enumerate(words[:363])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=True, model_max_length=99
    ).save_pretrained(path)
    spec = writing(path, prompt=None, generate={"max_new_tokens": 8})
    rows = prepared(spec, ["w1 w2 w3", "w4", "w5 w6 . w7 w8"])
    expected = library_outputs(path, rows.column(TOKEN_IDS).to_pylist(), max_new_tokens=8)
    assert [row["text"] for row in predicted(spec, rows, FEW)] == [text.text for text in expected]
    assert hold_to_library(spec)
    generation = spec.task.generation
    assert generation is not None
    assert "cleans" not in writing(folder_of("t5")).to_dict()["task"]["generation"]["rules"]
    rules = replace(generation.rules, cleans=False)
    wrong = replace(spec, task=replace(spec.task, generation=replace(generation, rules=rules)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(JobError, match=r"decodes tokens \[.*\] to \"w.*\", expected \"w"):
        compare(str(path), wrong)


@pytest.mark.parametrize(
    ("name", "values", "problem"),
    [
        ("Qwen2AudioForConditionalGeneration",
         {"audio_config": {"num_mel_bins": 8, "encoder_layers": 1, "encoder_attention_heads": 2,
                           "encoder_ffn_dim": 16, "d_model": 16},
          "text_config": {"model_type": "qwen2", "hidden_size": 16, "num_hidden_layers": 1,
                          "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 363}},
         "reads clips of sound among the tokens of a text, which no input gives"),
    ],
)  # fmt: skip
def test_a_model_whose_rows_are_no_texts_is_refused_with_the_reason(
    name: str, values: dict[str, Any], problem: str, tmp_path: Path
):
    size, cls = write_language_tokenizer(tmp_path), getattr(transformers, name)
    sizes = {} if "text_config" in values else {"vocab_size": size}
    write_model(tmp_path, cls, cls.config_class(**values, **sizes))
    with pytest.raises(JobError, match=problem) as refused:
        read_facts(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["llava", pytest.param("idefics3", marks=pytest.mark.slow)])
def test_a_model_that_sees_images_reads_texts_without_any(family: str, tmp_path: Path):
    path = make_feature_writer(tmp_path / "m", family)
    spec = writing(path)
    rows = prepared(spec, TEXTS)
    prompts = rows.column(TOKEN_IDS).to_pylist()
    model = transformers.AutoModelForImageTextToText.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    expected = [greedy(model, tokenizer, {"input_ids": torch.tensor([ids])}) for ids in prompts]
    assert [row["text"] for row in predicted(spec, rows, FEW)] == [text.text for text in expected]
    assert hold_to_library(spec)
    scored = choosing(path)
    answers = prompt_tokenizer(scored.input.text).answers(scored.task.prompts)
    [row] = predicted(scored, prepared(scored, TEXTS[1:2]))
    [ids] = prepared(scored, TEXTS[1:2]).column(TOKEN_IDS).to_pylist()
    wanted = np.exp(library_scores(path, ids, answers, model))
    np.testing.assert_allclose(scores_of(row), wanted / wanted.sum(), atol=1e-4)


def test_a_window_counts_the_tokens_of_a_row_alone(tmp_path: Path):
    path = make_writer(tmp_path / "m", "mistral", sliding_window=12)
    spec = writing(path)
    rows = prepared(spec, TEXTS)
    expected = library_outputs(path, rows.column(TOKEN_IDS).to_pylist())
    assert [row["text"] for row in predicted(spec, rows, FEW)] == [text.text for text in expected]


def test_what_neighbours_say_changes_no_bit_of_a_row(folder_of: Any):
    module = load_module(writing(folder_of(LLAMA)))
    assert isinstance(module, CausalDecoding)

    def logits(*prompts: list[int]) -> torch.Tensor:
        begun, logits = module.begin(tensors_of(prompts)), []
        given = [before[-1] for before in begun.before]
        with torch.inference_mode():
            for step in range(4):
                places = [len(before) - 1 + step for before in begun.before]
                logits.append(module.step(begun.batch, given, places)[0])
                given = [20 + step, *(prompt[0] for prompt in prompts[1:])]
        return torch.stack(logits)

    first = [31, 42, 53, 64, 75]
    assert torch.equal(logits(first, [7, 8, 9], [9]), logits(first, [70, 81, 92], [200]))


def test_what_neighbours_say_changes_no_bit_of_an_answer(folder_of: Any):
    spec = writing(folder_of("bart"))
    engine = GenerateEngine(PredictorConfig(spec, 8, 0.0, 1, pa.schema([])))
    lengths = np.array([5, 3, 1], np.int32)

    def first_of(*ids: list[int]) -> tuple[str, float]:
        results = engine.reduce({"input_ids": np.array(ids), "num_tokens": lengths})
        return results["text"][0], results["mean_logprob"][0]

    first = [31, 42, 53, 64, 75]
    some, others = ([7, 8, 9, 0, 0], [9, 0, 0, 0, 0]), ([70, 81, 92, 0, 0], [200, 0, 0, 0, 0])
    assert first_of(first, *some) == first_of(first, *others)


def test_a_text_stops_before_what_stops_it(folder_of: Any):
    path = folder_of(LLAMA)
    plain = [row["text"] for row in predicted(writing(path), prepared(writing(path), TEXTS))]
    first, second, *_ = sorted(plain, key=len, reverse=True)
    stop = [first[7], second[4:6], second[3:6]]
    spec = writing(path, generate={"stop": tuple(stop)})
    for row, text in zip(predicted(spec, prepared(spec, TEXTS)), plain, strict=True):
        places = [text.find(ending) for ending in stop if ending in text]
        assert row["text"] == text[: min(places, default=len(text))]
        assert (row["finish_reason"] == "stop") == bool(places)
    assert max(len(text) - text.find(stop[0]) for text in plain) > 1


def test_a_prompt_without_room_for_an_output_is_refused_and_the_longest_is_written(folder_of: Any):
    path = folder_of("gpt2")
    spec = writing(path, prompt="{text}")
    assert spec.input.max_tokens == 160 - NEW_TOKENS
    texts = [" ".join(["cat"] * count) for count in range(20, 161, 20)]
    rows = prepared(spec, texts)
    actual = predicted(spec, rows)
    long = [row for row in actual if row["error"]]
    assert {row["error"] for row in long} == {"input_too_long"}
    assert "leave room for 24 new ones" in long[0]["message"]
    written = [row for row in actual if not row["error"]]
    assert max(row["num_input_tokens"] for row in written) > 160 - NEW_TOKENS - 20
    assert len(long) + len(written) == len(texts)


def test_outputs_without_an_end_or_a_text_are_kept_or_quarantined(folder_of: Any):
    path = folder_of(LLAMA)
    rows, few = prepared(writing(path), TEXTS), {"max_new_tokens": 5}
    kept = predicted(writing(path, generate=few), rows)
    assert not any(row["error"] for row in kept)
    strict = predicted(writing(path, generate={**few, "invalid": "quarantine"}), rows)
    for row, before in zip(strict, kept, strict=True):
        reason = "output_truncated" if before["finish_reason"] == "length" else None
        assert row["error"] == reason or (row["error"], before["text"]) == ("empty_output", "")
        assert (row["text"] is None) == bool(row["error"])
    assert {row["error"] for row in strict} > {None}


def test_messages_and_the_text_alone_are_prompts_too(folder_of: Any):
    path = folder_of(LLAMA)
    ids = [
        prepared(spec, ["<|im_end|> a film"]).column(TOKEN_IDS)[0].as_py()
        for spec in (writing(path, prompt=None), writing(path, messages=MESSAGES))
    ]
    assert 4 not in ids[0]  # a control token of a text stays text
    assert ids[1].count(4) == 2
    assert ids[1][-len(ids[0]) :] != ids[0]


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"min_length": 10**9}, "min_length is 1000000000, expected less than or equal to"),
        (
            {"eos_token_id": [2, "__import__"]},
            "eos_token_id is .__import__., expected a valid",
        ),
        ({"eos_token_id": 10**6}, "eos_token_id is 1000000, expected less than"),
        (
            {"repetition_penalty": float("inf")},
            "repetition_penalty is Infinity, expected less",
        ),
        ({"bad_words_ids": [7]}, "bad_words_ids is 7, expected a valid list"),
        ({"bad_words_ids": 7}, "bad_words_ids is 7, expected a valid list"),
        ({"sequence_bias": {"a": 1}}, "sequence_bias .*: task 'generate' does not do that"),
        ({"guidance_scale": 3.0}, "guidance_scale 3.0: task 'generate' does not do that"),
        ({"stop_strings": ["a"]}, "stop_strings .*: task 'generate' does not do that"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_line(
    values: dict[str, Any], problem: str, folder_of: Any, tmp_path: Path
):
    path = copytree(folder_of(LLAMA), tmp_path / "m")
    (path / "generation_config.json").write_text(json.dumps(values))
    with pytest.raises(JobError, match=problem) as refused:
        writing(path)
    assert "\n" not in str(refused.value)
    assert str(refused.value).count(problem[:10]) == 1


def test_what_asks_for_other_outputs_is_overridden_and_said(folder_of: Any, tmp_path: Path):
    path = copytree(folder_of(LLAMA), tmp_path / "m")
    values = {"eos_token_id": 2, "do_sample": True, "top_p": 0.9, "num_beams": 4, "top_k": 50}
    (path / "generation_config.json").write_text(json.dumps(values))
    note = writing(path).notes[-1]
    assert note == (
        "generation_config.json: ends at 2; greedy, so overridden: do_sample true, num_beams 4, "
        "top_k 50, top_p 0.9"
    )


def test_the_window_of_a_decoder_limits_its_outputs(folder_of: Any):
    with pytest.raises(JobError, match=r"max_new_tokens = 160: .* writes 159 tokens at most"):
        writing(folder_of("bart"), generate={"max_new_tokens": 160})
    for most in (158, 4096):
        problem = rf"model\.generate\.max_new_tokens = {most}: leaves no room for a text"
        with pytest.raises(JobError, match=problem):
            writing(folder_of(LLAMA), generate={"max_new_tokens": most})
