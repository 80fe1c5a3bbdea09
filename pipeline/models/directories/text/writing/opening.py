"""Make the module that writes for a task, and try whether rows may begin at different steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.models.directories.facts import CAPTION, CAUSAL, SPEECH
from pipeline.models.directories.text.cached_model import refused_for
from pipeline.models.directories.text.writing.causal import (
    CausalDecoding,
    ImageFirstDecoding,
    PicturedDecoding,
)
from pipeline.models.directories.text.writing.decoding import Decoding, Tensors
from pipeline.models.directories.text.writing.pictured import FAMILIES
from pipeline.models.directories.text.writing.target import (
    HeardDecoding,
    SeenDecoding,
    TargetDecoding,
)
from pipeline.models.generation import Rules
from pipeline.models.records.grammar import Grammar
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import BatchLimits, Input
from pipeline.preprocessing.texts.prompts import PromptTokenizer

_CHECKED_TOKENS, _CHECKED_STEPS, _TOLERANCE = (7, 4, 1), 3, 1e-3
_FEATURES = 2
"""Rows of features that are tried: an encoder of 30 s takes long for each."""
Text = Callable[[Sequence[int]], str]
"""Tokens -> their text."""


def with_decoding(
    head: str, model: nn.Module, task: TaskSpec, seen: Input, tokenizer: PromptTokenizer
) -> Decoding:
    """Return the module that writes for a task.

    Args:
        head: As `LibraryClass.head`, of a model that writes.
        model: Of the library, with this head.
        task: Its rules say what the decoder begins with.
        seen: What the model sees of a row.
        tokenizer: Makes a text of tokens that the model has written.

    Raises:
        JobError: Rows of the model cannot begin at different steps.
    """
    assert task.generation is not None, "the task writes"
    rules = task.generation.rules
    text: Text = tokenizer.text
    if rules.times_from is not None:
        text = _without(text, rules.times_from)
    module: Decoding
    if head == CAUSAL:
        module = CausalDecoding(model, text)
    elif head == CAPTION:
        module = _pictured(model, text, rules)
    else:
        module = (HeardDecoding if head == SPEECH else TargetDecoding)(model, text, rules)
    module.grammar = Grammar.of(task.generation, tokenizer)
    with torch.no_grad():
        count = len(_CHECKED_TOKENS) if seen.counts_tokens else _FEATURES
        _require_rows_alone(module, type(model).__name__, _examples(module, seen), count)
    return module


def _without(text: Text, times_from: int) -> Text:
    return lambda ids: text([each for each in ids if each < times_from])


def _pictured(model: Any, text: Text, rules: Rules) -> Decoding:
    if model.config.model_type in FAMILIES:
        return PicturedDecoding(model, text, rules.start)
    if hasattr(model, "git"):
        return ImageFirstDecoding(model, text, rules.start)
    if hasattr(model, "text_decoder"):  # BLIP
        return SeenDecoding(model.text_decoder, text, rules, model.vision_model)
    projection = getattr(model, "enc_to_dec_proj", None)
    return SeenDecoding(model.decoder, text, rules, model.encoder, projection)


def tensors_of(prompts: Sequence[Sequence[int]]) -> Tensors:
    """Return texts as the model takes them: ids and mask, int64 (B, L), padded on the right."""
    ids = [torch.tensor(prompt, dtype=torch.int64) for prompt in prompts]
    masks = [torch.ones_like(each) for each in ids]
    pad = nn.utils.rnn.pad_sequence
    return {"input_ids": pad(ids, batch_first=True), "attention_mask": pad(masks, batch_first=True)}


def _examples(module: Decoding, seen: Input) -> Callable[[Sequence[int]], Tensors]:
    """Return what makes tensors of some of the rows that are tried."""
    if seen.counts_tokens:
        size = _num_tokens(module)
        prompts = [
            [(31 * n + row) % size for n in range(length)]
            for row, length in enumerate(_CHECKED_TOKENS)
        ]
        return lambda rows: tensors_of([prompts[row] for row in rows])
    [(name, slot)] = seen.slots(BatchLimits(1)).items()
    one = torch.ones((1, *slot.shape[1:]), dtype=getattr(torch, slot.dtype))
    [prepared] = seen.normaliser(torch.float32)(one)
    shape = (_FEATURES, *prepared.shape[1:])
    values = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return lambda rows: {name: values[[*rows]]}


def _num_tokens(module: Decoding) -> int:
    found: int = module.model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    return found


def _require_rows_alone(
    module: Decoding, name: str, examples: Callable[[Sequence[int]], Tensors], count: int
) -> None:
    """Refuse a model whose logits change where rows begin at different steps and leave."""
    size, last = _num_tokens(module), count - 1
    output = [(17 * n + 5) % size for n in range(2 * _CHECKED_STEPS)]
    with refused_for("generate", name, "write rows that begin at different steps"):
        begun, late = module.begin(examples(range(last))), module.begin(examples([last]))
        before = [*begun.before, *late.before]
        expected = [module.plain(examples([row]), ids, output) for row, ids in enumerate(before)]
        batch, rows, steps = begun.batch, [*range(last)], [0] * count
        for number in range(2 * _CHECKED_STEPS):
            if number == _CHECKED_STEPS:  # the last one enters, and of three the first leaves
                batch = batch.joined(late.batch).kept([*range(count)][-2:])
                rows = [*range(count)][-2:]
            given = [output[steps[row] - 1] if steps[row] else before[row][-1] for row in rows]
            places = [len(before[row]) - 1 + steps[row] for row in rows]
            logits = module.step(batch, given, places)
            for found, row in zip(logits, rows, strict=True):
                wanted = expected[row][steps[row]]
                off = float((found - wanted).abs().max())
                if not off <= _TOLERANCE * max(1.0, float(wanted.abs().max())):
                    raise ValueError(f"logits are off by {off:.2g}")
                steps[row] += 1
