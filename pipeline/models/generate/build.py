"""Build the module that writes, and check that other rows of a batch do not change its output."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import JobError
from pipeline.models.generate.cached_model import (
    ONE_BY_ONE,
    TOLERANCE,
    can_share,
    refused_for,
    require_causal,
)
from pipeline.models.generate.causal import CausalDecoding
from pipeline.models.generate.decoding import (
    AloneDecoding,
    BlipDecoding,
    Decoding,
    ImageFirstDecoding,
    ImagePromptDecoding,
    LibraryDecoding,
    Tensors,
    has_image_tokens,
)
from pipeline.models.generate.grammar import Grammar
from pipeline.models.generate.spec import CAPTION, CAUSAL, SEQ2SEQ, SPEECH, Generation, Rules
from pipeline.models.generate.windowed import WindowedDecoding, writes_windows
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.texts.prompts import PromptTokenizer

log = logging.getLogger(__name__)
_CHECKED_TOKENS, _CHECKED_STEPS = (7, 4, 1), 3
Text = Callable[[Sequence[int]], str]
"""Tokens -> their text."""


def with_decoding(
    head: str, model: nn.Module, task: TaskSpec, tokenizer: PromptTokenizer
) -> Decoding:
    """Return the module that writes for a task.

    Args:
        head: One of `WRITERS`.
        model: The library's model, with this head.
        task: Has the rules, which say how the decoder begins.
        tokenizer: Decodes the tokens that the model has written.

    Raises:
        JobError: Logits depend on other rows, or rows cannot begin at different steps.
    """
    assert task.generation is not None, "the task writes"
    text, rules = text_decoder(task.generation, tokenizer), task.generation.rules
    module: Decoding
    if head == CAUSAL:
        require_causal(model, "generate")
    with torch.no_grad():
        if head == CAUSAL:
            module = _continuing(model, text, rules)
        elif head == SPEECH and writes_windows(model, rules):
            module = WindowedDecoding(model, text, rules, timestamps=task.generation.timestamps)
        else:
            cls = _caption_class(model) if head == CAPTION else LibraryDecoding
            module = cls(model, text, rules)
            if head == SEQ2SEQ:
                _require_padding_is_unseen(module, type(model).__name__)
    module.grammar = Grammar.of(task.generation, tokenizer)
    return module


def _continuing(model: nn.Module, text: Text, rules: Rules) -> Decoding:
    """Return the module that continues texts: many at once, or one by one; raises as above."""
    name = type(model).__name__
    if can_share(type(model), model.config):
        module = CausalDecoding(model, text)
        try:
            _require_rows_alone(module, name)
            return module
        except JobError as error:
            log.warning(ONE_BY_ONE, error)
    alone = AloneDecoding(model, text, rules)
    _require_states_are_exact(alone, name)
    return alone


def text_decoder(generation: Generation, tokenizer: PromptTokenizer) -> Text:
    """Return the function that decodes the tokens that a model has written."""
    text: Text = tokenizer.text
    if (times_from := generation.rules.times_from) is not None:
        text = _without(text, times_from)
    if generation.rules.cleans and not generation.schema:
        text = _cleaned(text)
    return text


def _without(text: Text, times_from: int) -> Text:
    return lambda ids: text([token for token in ids if token < times_from])


def _cleaned(text: Text) -> Text:
    return lambda ids: clean(text(ids))


def clean(text: str) -> str:
    """Remove the spaces of a text that transformers removes, such as those before punctuation."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast)
    return str(tokenizer.clean_up_tokenization(text))


def _caption_class(model: Any) -> type[LibraryDecoding]:
    if has_image_tokens(model.config):
        return ImagePromptDecoding
    if hasattr(model, "git"):
        return ImageFirstDecoding
    return BlipDecoding if hasattr(model, "text_decoder") else LibraryDecoding


def tensors_of(prompts: Sequence[Sequence[int]]) -> Tensors:
    """Return the model input of texts: ids and mask, int64 (B, L), padded on the right."""
    ids = [torch.tensor(prompt, dtype=torch.int64) for prompt in prompts]
    masks = [torch.ones_like(row) for row in ids]
    pad = nn.utils.rnn.pad_sequence
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": pad(masks, batch_first=True)}


def _require_rows_alone(module: CausalDecoding, name: str) -> None:
    """Refuse a model whose logits change where rows enter and leave at different steps."""
    prompts = _prompts(module)
    count, size = len(prompts), _num_tokens(module)
    output = [(17 * n + 5) % size for n in range(2 * _CHECKED_STEPS)]
    with refused_for("generate", name, "write rows that begin at different steps"):
        begun, late = module.begin(tensors_of(prompts[:-1])), module.begin(tensors_of(prompts[-1:]))
        expected = [module.plain(tensors_of([ids]), ids, output) for ids in prompts]
        batch, rows, steps = begun.batch, [*range(count - 1)], [0] * count
        for number in range(2 * _CHECKED_STEPS):
            if number == _CHECKED_STEPS:  # the last row enters, the first one leaves
                batch = batch.joined(late.batch).kept([*range(count)][-2:])
                rows = [*range(count)][-2:]
            given = [output[steps[row] - 1] if steps[row] else prompts[row][-1] for row in rows]
            places = [len(prompts[row]) - 1 + steps[row] for row in rows]
            logits = module.step(batch, given, places)
            for actual, row in zip(logits, rows, strict=True):
                _require_near(actual, expected[row][steps[row]])
                steps[row] += 1


def _require_states_are_exact(module: AloneDecoding, name: str) -> None:
    """Refuse a model whose logits with its states differ from those of one pass."""
    prompt, size = _prompts(module)[0], _num_tokens(module)
    output = [(17 * n + 5) % size for n in range(_CHECKED_STEPS)]
    given: list[torch.Tensor] = []

    def choose(logits: torch.Tensor) -> torch.Tensor:
        given.append(logits[0].clone())
        wanted = torch.full_like(logits, float("-inf"))
        wanted[:, output[len(given) - 1]] = 0.0
        return wanted

    with refused_for("generate", name, "continue a text by its states"):
        tensors = tensors_of([prompt])
        has_ended = torch.zeros(1, dtype=torch.bool)
        module.write(module.begin(tensors).batch, len(output), choose, lambda: has_ended)
        for actual, wanted in zip(given, module.plain(tensors, prompt, output), strict=True):
            _require_near(actual, wanted)


def _require_padding_is_unseen(module: LibraryDecoding, name: str) -> None:
    """Refuse a model whose logits of a text depend on longer texts in the batch."""
    prompts = _prompts(module)
    with refused_for("generate", name, "read texts of several lengths at once"):
        for actual, ids in zip(module(**tensors_of(prompts)), prompts, strict=True):
            _require_near(actual, module(**tensors_of([ids]))[0])


def _prompts(module: Decoding) -> list[list[int]]:
    size = _num_tokens(module)
    return [
        [(31 * n + row) % size for n in range(length)] for row, length in enumerate(_CHECKED_TOKENS)
    ]


def _num_tokens(module: Decoding) -> int:
    num_tokens: int = module.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return num_tokens


def _require_near(actual: torch.Tensor, wanted: torch.Tensor) -> None:
    off = float((actual - wanted).abs().max())
    if not off <= TOLERANCE * max(1.0, float(wanted.abs().max())):
        raise ValueError(f"logits are off by {off:.2g}")
