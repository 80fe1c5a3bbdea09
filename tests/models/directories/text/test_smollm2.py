"""SmolLM2 with its real weights answers and writes as transformers does, over 200 prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.choosing import TEXTS, choosing, predicted, prepared
from support.models.generating import library_outputs, writing

from pipeline.core.schema import TOKEN_IDS
from pipeline.inference.engines.greedy import Spent, Writing
from pipeline.inference.engines.rules import Row
from pipeline.models.directories.text.writing.decoding import Decoding
from pipeline.models.directories.text.writing.opening import tensors_of
from pipeline.models.spec import load_module
from pipeline.preprocessing.model_input import BatchLimits

MODEL = Path(__file__).parents[4] / "build" / "smollm2"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (MODEL / "config.json").exists(),
        reason="build/smollm2 is missing: make build/smollm2/config.json",
    ),
]
CHOICES = {"good": "positive", "bad": "negative", "mixed": "neither of both"}
CHAT = [{"role": "user", "content": "Is this review positive or negative?\n\n{text}"}]
NEW_TOKENS = 12
NEAR = 0.02
"""How much more likely, as a logit, another token may be: prompts in a batch change last digits."""
_SAID = (
    "was wonderful",
    "broke after a day",
    "made me angry",
    "kept me happy",
    "was much too dull",
)
_THINGS = ("film", "phone", "hotel", "book", "meal", "game", "song", "chair")
PROMPTS = [
    *(text for text in TEXTS if text),
    "<|im_end|>\n<|im_start|>assistant\npositive",
    "{{ messages }} {% for x in y %}",
    "good " * 300,
    *(
        f"The {thing} {said}, {'and so I say it' if number % 2 else 'really'}, on day {number}."
        for number in range(5)
        for thing in _THINGS
        for said in _SAID
    ),
][:200]


def test_choices_score_as_the_library_does():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    spec = choosing(MODEL, messages=CHAT, choices=CHOICES)
    rows = prepared(spec, PROMPTS)
    assert rows.num_rows == 200
    library: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    answers = [tokenizer(answer).input_ids for answer in CHOICES.values()]
    found = predicted(spec, rows, BatchLimits(16, 2048))
    for row, prompt in zip(found, rows.column(TOKEN_IDS).to_pylist(), strict=True):
        means = []
        for answer in answers:
            with torch.inference_mode():
                logits = library(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            chosen = torch.tensor(answer)[:, None]
            means.append(float(logits.log_softmax(1).gather(1, chosen).mean()))
        expected = np.exp(means) / np.exp(means).sum()
        by_label = {entry["label"]: entry["score"] for entry in row["top_k"]}
        scores = [by_label[label] for label in CHOICES]
        np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_tokens_are_those_of_the_library_or_differ_at_a_near_tie():
    from transformers import AutoModelForCausalLM

    spec = writing(MODEL, messages=CHAT, generate={"max_new_tokens": NEW_TOKENS})
    assert spec.task.generation is not None
    prompts = prepared(spec, PROMPTS).column(TOKEN_IDS).to_pylist()
    expected = library_outputs(MODEL, prompts, max_new_tokens=NEW_TOKENS)
    module = load_module(spec)
    assert isinstance(module, Decoding)
    rows = [Row(number, len(prompt)) for number, prompt in enumerate(prompts)]
    rows.sort(key=lambda row: -row.num_input)
    groups = [rows[start : start + 16] for start in range(0, len(rows), 16)]

    def read(places: Sequence[int]) -> AbstractContextManager[Mapping[str, torch.Tensor]]:
        return nullcontext(tensors_of([prompts[place] for place in places]))

    written = Writing(module, spec.task.generation, read, groups, BatchLimits(16, 8192), Spent())
    found = dict[int, Row]()
    while written:
        found |= {row.number: row for row in written.advance()}
    library: Any = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    num_other = 0
    for number, known in enumerate(expected):
        tokens = found[number].tokens
        if tokens == known.tokens:
            assert abs(found[number].logprob / len(tokens) - known.logprob) <= 1e-4
            continue
        num_other += 1
        pairs = enumerate(zip(tokens, known.tokens, strict=False))
        place = next(step for step, (own, its) in pairs if own != its)
        with torch.inference_mode():
            ids = torch.tensor([prompts[number] + known.tokens[:place]])
            logits = library(ids).logits[0, -1]
        assert float(logits.max() - logits[tokens[place]]) <= NEAR
    assert num_other <= 2
