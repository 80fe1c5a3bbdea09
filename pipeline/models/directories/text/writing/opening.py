"""Make the module that writes for a task, and what makes a text of its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from pipeline.models.directories.facts import CAPTION, CAUSAL
from pipeline.models.directories.text.writing.causal import CausalDecoding
from pipeline.models.directories.text.writing.decoding import (
    BlipDecoding,
    Decoding,
    ImageFirstDecoding,
    ImagePromptDecoding,
    LibraryDecoding,
    has_image_tokens,
)
from pipeline.models.generation import Generation
from pipeline.models.records.grammar import Grammar
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.texts.prompts import PromptTokenizer

Text = Callable[[Sequence[int]], str]
"""Tokens -> their text."""


def with_decoding(
    head: str, model: nn.Module, task: TaskSpec, tokenizer: PromptTokenizer
) -> Decoding:
    """Return the module that writes for a task.

    Args:
        head: As `LibraryClass.head`, of a model that writes.
        model: Of the library, with this head.
        task: Its rules say what the decoder begins with.
        tokenizer: Makes a text of tokens that the model has written.
    """
    assert task.generation is not None, "the task writes"
    text = text_decoder(task.generation, tokenizer)
    module: Decoding
    if head == CAUSAL:
        module = CausalDecoding(model, text)
    else:
        cls = _caption_class(model) if head == CAPTION else LibraryDecoding
        module = cls(model, text, task.generation.rules)
    module.grammar = Grammar.of(task.generation, tokenizer)
    return module


def text_decoder(generation: Generation, tokenizer: PromptTokenizer) -> Text:
    """Return what makes a text of tokens that a model has written."""
    text: Text = tokenizer.text
    if (times_from := generation.rules.times_from) is not None:
        text = _without(text, times_from)
    if generation.rules.cleans and not generation.schema:
        text = _cleaned(text)
    return text


def _without(text: Text, times_from: int) -> Text:
    return lambda ids: text([token for token in ids if token < times_from])


def _cleaned(text: Text) -> Text:
    from transformers import PreTrainedTokenizerFast

    clean = PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast).clean_up_tokenization
    return lambda ids: str(clean(text(ids)))


def _caption_class(model: Any) -> type[LibraryDecoding]:
    if has_image_tokens(model.config):
        return ImagePromptDecoding
    if hasattr(model, "git"):
        return ImageFirstDecoding
    return BlipDecoding if hasattr(model, "text_decoder") else LibraryDecoding
