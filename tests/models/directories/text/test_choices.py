"""Test that language models score the answers of a job as transformers' own loss does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from shutil import copytree, ignore_patterns
from typing import Any

import numpy as np
import pytest
import torch
from support.models.feature_writers import LOOK, make_feature_writer
from support.models.language_models import (
    CHOICES,
    FAMILIES,
    MESSAGES,
    PROMPT,
    SEQ2SEQ,
    TEXTS,
    choosing,
    library_scores,
    make_language_model,
    predicted,
    prepared,
    scores_of,
)
from support.models.snapshots import make_snapshot, write_model
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.schema import TOKEN_IDS
from pipeline.models.directories.text.choices import _MOST_ENDS, CausalChoices
from pipeline.models.spec import load_module
from pipeline.preprocessing.model_input import BatchLimits

LLAMA = "llama"
QUICK = (LLAMA, "mamba")


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda family: make_language_model(tmp_path_factory.mktemp("m") / "m", family))


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def library_ids(path: Path, family: str, text: str) -> tuple[list[int], list[list[int]]]:
    """Return the tokens of a prompt and of the answers, by the library's tokenizer."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    prompt = PROMPT.replace("{text}", text, 1)
    ids = tokenizer(prompt).input_ids
    if family in SEQ2SEQ:
        return ids, [tokenizer(answer).input_ids for answer in CHOICES.values()]
    whole = [tokenizer(f"{prompt} {answer}").input_ids for answer in CHOICES.values()]
    assert all(tokens[: len(ids)] == ids for tokens in whole)
    return ids, [tokens[len(ids) :] for tokens in whole]


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in FAMILIES],
)
def test_scores_are_those_of_the_library(family: str, folder_of: Any):
    path = folder_of(family)
    spec = choosing(path)
    rows = prepared(spec, TEXTS)
    ids = rows.column(TOKEN_IDS).to_pylist()
    actual = predicted(spec, rows)
    for number, text in enumerate(TEXTS):
        prompt, answers = library_ids(path, family, text)
        assert ids[number] == prompt
        expected = softmax(library_scores(path, prompt, answers))
        np.testing.assert_allclose(scores_of(actual[number]), expected, atol=1e-4)
        assert actual[number]["label"] == [*CHOICES][int(expected.argmax())]
    assert np.ptp([scores_of(row) for row in actual], axis=0).max() > 5e-4  # the text decides


@pytest.mark.parametrize(
    ("family", "count"),  # of 7 lengths the ends are read apart
    quick_cases(
        product(["gemma2", "gemma3", "mistral"], [2, 7]),
        lambda *case: case in (("gemma2", 2), ("gemma3", 7)),
    ),
)
def test_a_prompt_beyond_the_window_is_read_whole(family: str, count: int, tmp_path: Path):
    path = make_language_model(tmp_path / "m", family, sliding_window=16)
    spec = choosing(path)
    texts = [f"{'and the dog ' * (4 * n)} {n}" for n in range(count)]
    rows = prepared(spec, texts)
    assert not any(rows.column("truncated").to_pylist())
    actual = predicted(spec, rows, BatchLimits(64, 4096))
    for text, row in zip(texts, actual, strict=True):
        expected = softmax(library_scores(path, *library_ids(path, family, text)))
        np.testing.assert_allclose(scores_of(row), expected, atol=1e-4)


@pytest.mark.parametrize("family", [LLAMA, "t5"])
def test_neither_batches_nor_neighbours_change_a_score(family: str, folder_of: Any):
    spec = choosing(folder_of(family))
    texts = [*TEXTS, "cat " * 200]
    rows = prepared(spec, texts)
    assert rows.column("truncated").to_pylist() == [False] * len(TEXTS) + [True]
    # Of so many lengths the ends are read by a pass of their own, of few lengths not.
    assert len({len(ids) for ids in rows.column(TOKEN_IDS).to_pylist()}) > _MOST_ENDS
    expected = [scores_of(row) for row in predicted(spec, rows, BatchLimits(1))]
    for limits in (BatchLimits(3, 64), BatchLimits(64, 4096)):
        actual = [scores_of(row) for row in predicted(spec, rows, limits)]
        np.testing.assert_allclose(actual, expected, atol=1e-5)
    others = prepared(spec, [texts[0], *("dog " * len(text) for text in texts[1:])])
    [first, *_] = predicted(spec, others, BatchLimits(64, 4096))
    np.testing.assert_allclose(scores_of(first), expected[0], atol=1e-5)


def test_what_all_prompts_begin_with_is_computed_once(folder_of: Any):
    spec = choosing(folder_of(LLAMA), messages=MESSAGES)
    module = load_module(spec)
    assert isinstance(module, CausalChoices)
    inputs = spec.input.arrays(prepared(spec, TEXTS[1:3]))
    ids = torch.from_numpy(inputs["input_ids"].astype(np.int64))
    mask = (torch.arange(ids.shape[1]) < torch.tensor(inputs["num_tokens"])[:, None]).long()
    assert len(module.shared) >= 3
    assert ids[0, : len(module.shared)].tolist() == [*module.shared]
    seen: list[int] = []
    module.model.register_forward_pre_hook(
        lambda _, __, given: seen.append(given["input_ids"].numel()), with_kwargs=True
    )
    with torch.inference_mode():
        actual = module(ids, mask)
        seen.clear()
        torch.testing.assert_close(module(ids, mask), actual)
        shared, module.shared = module.shared, ()
        num_tokens = sum(seen)
        seen.clear()
        torch.testing.assert_close(module(ids, mask), actual, atol=1e-4, rtol=0)
    assert num_tokens == sum(seen) - len(shared) * len(ids)
    # The prompt once, then what follows the first token of each answer.
    rest = sum(len(answer) - 1 for answer in module.answers())
    assert sum(seen) == (ids.shape[1] + rest) * len(ids)


def test_prior_correction_takes_off_what_an_answer_has_without_a_text(folder_of: Any):
    path = folder_of(LLAMA)
    plain, corrected = choosing(path), choosing(path, prior_corrected=True)
    assert plain.to_dict() != corrected.to_dict()
    rows = prepared(plain, TEXTS)
    means = np.array([library_scores(path, *library_ids(path, LLAMA, text)) for text in TEXTS])
    actual = [scores_of(row) for row in predicted(corrected, rows)]
    np.testing.assert_allclose(actual, softmax(means - means[0]), atol=1e-4)
    np.testing.assert_allclose(actual[0], [1 / 3] * 3, atol=1e-4)  # of no text


def test_a_model_that_scores_no_answers_is_refused_with_the_task_that_does(tmp_path: Path):
    labels = {0: "contradiction", 1: "entailment"}
    nli = make_snapshot(tmp_path / "nli", "bert", "sequence", id2label=labels)
    with pytest.raises(JobError, match=r"take task 'zero_shot', with the answers as model\.pro"):
        choosing(nli)
    llava = make_feature_writer(tmp_path / "llava", "llava")
    with pytest.raises(JobError, match=r"'generate', with the answers as the enum .*\.schema$"):
        choosing(llava, input_name="image", prompt=LOOK)


def test_the_chat_template_and_the_prompt_are_in_the_settings(folder_of: Any, tmp_path: Path):
    path = folder_of(LLAMA)
    settings = [
        spec.to_dict()
        for spec in (
            choosing(path),
            choosing(path, prompt=f"{PROMPT} "),
            choosing(path, prompt="{text}\nSentiment:"),
            choosing(path, messages=MESSAGES),
            choosing(make_language_model(tmp_path / "n", LLAMA, chat="{{ messages[1].content }}"),
                     messages=MESSAGES),
        )
    ]  # fmt: skip
    assert settings[0] == settings[1]  # an answer begins with the space
    digests = {str(entry["transform"]["prompt"]) for entry in settings}
    assert len(digests) == 4
    assert settings[3]["weights_sha256"] != settings[4]["weights_sha256"]


def test_a_prompt_without_a_place_for_the_text_is_refused(folder_of: Any):
    path = folder_of(LLAMA)
    with pytest.raises(JobError, match=r"model\.prompt: must have \{text\} once"):
        choosing(path, prompt="Is it so?")
    with pytest.raises(JobError, match=r"model\.messages: must have \{text\} once"):
        choosing(path, messages=[{"role": "user", "content": "Is it so?"}])


def test_a_model_that_sees_what_follows_is_no_language_model(folder_of: Any, tmp_path: Path):
    from transformers import BertConfig, BertLMHeadModel

    path = copytree(folder_of(LLAMA), tmp_path / "m", ignore=ignore_patterns("*.safetensors"))
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    config = BertConfig(vocab_size=400, num_hidden_layers=2, pad_token_id=0, **sizes)
    write_model(path, BertLMHeadModel, config)
    spec = choosing(path)
    with pytest.raises(JobError, match=r"BertLMHeadModel of .* depend on the tokens that follow"):
        load_module(spec)


@pytest.mark.slow
def test_half_precision_agrees_with_float32(folder_of: Any):
    spec = choosing(folder_of(LLAMA))
    rows = prepared(spec, TEXTS)
    expected = [scores_of(row) for row in predicted(spec, rows)]
    actual = [scores_of(row) for row in predicted(replace(spec, precision="bf16"), rows)]
    np.testing.assert_allclose(actual, expected, atol=0.1)
    assert np.abs(np.array(actual) - expected).max() > 0
