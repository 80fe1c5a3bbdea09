"""Modules of task `zero_shot`: logits (B, K) of texts for K prompts.

`EncoderZeroShot` compares vectors, `EntailmentZeroShot` asks an NLI model whether a text entails
each prompt, as transformers' ZeroShotClassificationPipeline does. Both are given token ids, and
take `input_ids` and `attention_mask`, int64 (B, L), padded on the right.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from pipeline.models.directories.facts import DirectoryFacts, TextFacts
from pipeline.models.directories.model_class import entailment_id
from pipeline.models.directories.text.tokens import (
    Hypothesis,
    hypotheses,
    load_tokenizer,
    settings_of,
)
from pipeline.preprocessing.texts.prompts import tokens_of
from pipeline.preprocessing.texts.text_settings import IDS, MASK, TYPES
from pipeline.preprocessing.texts.tokenizer import tokenizer_errors

SCALE = 20.0
"""Cosines are multiplied by this before the softmax, as in the loss that sentence-transformers
trains most of its encoders with."""


class EncoderZeroShot(nn.Module):
    """Cosines of the vector of a text and those of the prompts, times a scale."""

    prompts: torch.Tensor
    """float (K, D), of length 1."""

    def __init__(self, encoder: nn.Module, prompts: Sequence[Sequence[int]], pad_id: int) -> None:
        """Encode the prompts, once.

        Args:
            encoder: Takes `input_ids` and `attention_mask`, gives float (B, D).
            prompts: The token ids of K prompts, special tokens included.
            pad_id: Fills up prompts.
        """
        super().__init__()
        self.encoder = encoder
        rows = [torch.tensor(ids) for ids in prompts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
        ends = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < ends[:, None]).long()
        with torch.no_grad():
            vectors = encoder.eval()(input_ids=ids, attention_mask=mask)
        self.register_buffer("prompts", nn.functional.normalize(vectors, dim=1))

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float (B, K)."""
        vectors = self.encoder(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(vectors, dim=1) @ self.prompts.T * SCALE


class EntailmentZeroShot(nn.Module):
    """The logit of entailment of each prompt, one pass of the model per prompt.

    A long text has the same tokens for all prompts, those that fit with the longest of them; the
    pipeline of transformers keeps more of it for a shorter prompt.
    """

    ids: torch.Tensor
    """int64 (K, P): the tokens that follow a text, padded."""
    types: torch.Tensor
    """int64 (K, P)."""

    def __init__(
        self,
        model: nn.Module,
        pairs: Sequence[Hypothesis],
        entails: int,
        pad_id: int,
        *,
        has_types: bool,
    ) -> None:
        """Keep the tokens of the prompts.

        Args:
            model: Takes `input_ids`, `attention_mask`, and `token_type_ids` if it has types; gives
                logits (B, C). Takes more tokens than the texts have.
            pairs: The tokens of K prompts.
            entails: Which of the C outputs counts.
            pad_id: Token id that fills up a batch.
            has_types: Whether the model takes token types.
        """
        super().__init__()
        self.model, self.entails, self.pad_id, self.has_types = model, entails, pad_id, has_types
        for name, values, padding in (
            ("ids", [pair.ids for pair in pairs], pad_id),
            ("types", [pair.types for pair in pairs], 0),
        ):
            rows = [torch.tensor(row) for row in values]
            padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)
            self.register_buffer(name, padded)
        self.lengths = [len(pair.ids) for pair in pairs]

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return float (B, K)."""
        logits = [
            self._entailment(input_ids, attention_mask, prompt)
            for prompt in range(len(self.lengths))
        ]
        return torch.stack(logits, dim=1)

    def _entailment(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt: int
    ) -> torch.Tensor:
        """Return the logit, (B,), of texts with the tokens of a prompt behind their last one."""
        length = self.lengths[prompt]
        counts = attention_mask.sum(dim=1, keepdim=True)
        ids = nn.functional.pad(input_ids, (0, length), value=self.pad_id)
        places = torch.arange(ids.shape[1], device=ids.device)[None] - counts
        mask = (places < length).to(attention_mask.dtype)
        is_prompt = (places >= 0) & (places < length)
        places = places.clamp(0, length - 1)
        tensors = {
            IDS: torch.where(is_prompt, self.ids[prompt][places], ids),
            MASK: mask,
        }
        if self.has_types:
            types = self.types[prompt][places]
            tensors[TYPES] = torch.where(is_prompt, types, torch.zeros_like(types))
        logits: torch.Tensor = self.model(**tensors)
        return logits[:, self.entails]


def with_prompts(
    path: Path, facts: DirectoryFacts, module: torch.nn.Module, prompts: Sequence[str]
) -> torch.nn.Module:
    """Return a module that gives logits (B, K) of texts for K prompts.

    Args:
        facts: With labels its outputs are an NLI model's, otherwise embeddings.
        prompts: K texts. Those of an encoder get the directory's prefix, as texts do.

    Raises:
        JobError: The tokens of an NLI model's pairs do not begin with those of a text.
    """
    assert facts.text is not None, "of texts"
    tokenizer = load_tokenizer(path / facts.text.tokenizer, facts.text.overlay)
    pad_id = facts.text.pad_id
    if facts.labels is not None:
        with tokenizer_errors(f"model.path: {facts.text.tokenizer}: fails over texts"):
            pairs = hypotheses(tokenizer, prompts)
        entails = entailment_id(facts.labels)
        assert entails is not None, "it serves zero_shot"
        has_types = TYPES in facts.text.tensor_names
        return EntailmentZeroShot(module, pairs, entails, pad_id, has_types=has_types)
    return EncoderZeroShot(module, token_ids(path, facts.text, prompts), pad_id)


def token_ids(path: Path, text: TextFacts, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of prompts, each with the directory's prefix."""
    with tokenizer_errors(f"model.path: {text.tokenizer}: fails over texts"):
        tokens = tokens_of(settings_of(path, text), prompts)
    ends = tokens.counts.cumsum().tolist()
    return [tokens.ids[a:b].tolist() for a, b in itertools.pairwise([0, *ends])]
