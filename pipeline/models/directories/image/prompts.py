"""Put the prompts of task `zero_shot` around the module of a directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.models.directories.text.hypotheses import entailment_id, hypotheses
from pipeline.models.directories.text.text_facts import load_tokenizer
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors

if TYPE_CHECKING:
    import torch


def with_prompts(
    path: Path, facts: DirectoryFacts, module: torch.nn.Module, prompts: Sequence[str]
) -> torch.nn.Module:
    """Return a module that gives logits (B, K) of texts for K prompts.

    Args:
        path: The directory.
        facts: What it says; with labels its outputs are an NLI model's, otherwise embeddings.
        module: The module of the directory.
        prompts: K texts. Those of an encoder get the directory's prefix, as texts do.

    Raises:
        JobError: An NLI model's labels have no entailment, or its pairs are of another form.
    """
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot, EntailmentZeroShot

    assert facts.text is not None, "of texts"
    tokenizer = load_tokenizer(path / facts.text.tokenizer)
    pad_id = facts.text.pad_id
    if facts.labels is not None:
        with tokenizer_errors(f"model.path: {facts.text.tokenizer}: fails over texts"):
            found = hypotheses(tokenizer, prompts)
        entails = entailment_id(facts.labels)
        has_types = "token_type_ids" in facts.text.tensor_names
        return EntailmentZeroShot(module, found, entails, pad_id, has_types=has_types)
    return EncoderZeroShot(module, _token_ids(path, facts.text, prompts), pad_id)


def with_prompts_of_images(
    path: Path, text: TextFacts, model: Any, encoder: torch.nn.Module, prompts: Sequence[str]
) -> torch.nn.Module:
    """Return a module that gives logits (B, K) of images for K prompts, which are encoded once.

    Args:
        path: The directory.
        text: What it says of texts.
        model: Its model of two towers.
        encoder: The tower of texts.
        prompts: K texts.
    """
    from pipeline.models.directories.image.image_modules import ImageZeroShot
    from pipeline.models.directories.text.zero_shot import EncoderZeroShot

    encoded = EncoderZeroShot(encoder, _token_ids(path, text, prompts), text.pad_id)
    return ImageZeroShot(model, encoded.prompts)


def _token_ids(path: Path, text: TextFacts, prompts: Sequence[str]) -> list[list[int]]:
    tokenizer = load_tokenizer(path / text.tokenizer)
    with tokenizer_errors(f"model.path: {text.tokenizer}: fails over texts"):
        tokenizer.no_padding()
        tokenizer.enable_truncation(text.max_tokens)
        return [tokenizer.encode(text.prefix + prompt).ids for prompt in prompts]
