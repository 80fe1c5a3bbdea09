"""Models whose decoder answers to what an encoder has read: a text, a clip of sound, an image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from pipeline.models.directories.text.cached_model import new_cache, states_of
from pipeline.models.directories.text.writing.batch import Batch, States
from pipeline.models.directories.text.writing.decoding import (
    Begun,
    Decoding,
    Tensors,
    with_column,
)
from pipeline.models.generation import Rules

_BEFORE = ("cache_length", "past_key_values_length")
"""The library's names of how many tokens there are before, which modules of positions take."""


class TargetDecoding(Decoding):
    """A model of the library whose encoder reads a text."""

    places_name = "decoder_position_ids"
    """The library's name of the places of tokens, (B, T), where a model takes them."""

    def __init__(
        self, model: nn.Module, text: Callable[[Sequence[int]], str], rules: Rules
    ) -> None:
        """Take a model, or its decoder alone, and what the decoder begins with."""
        super().__init__(model, text)
        self.start, self.languages = list(rules.start), rules.languages
        self._rows_places: list[int] | None = None
        self._takes_places = self.places_name in self._takes
        for part in () if self._takes_places else model.modules():
            taken = [*inspect.signature(part.forward).parameters]
            if "attention_mask" not in taken and any(name in taken for name in _BEFORE):
                part.register_forward_hook(self._placed)

    def encode(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the vectors of rows, (B, S, D), and which belong to the row, bool (B, S)."""
        mask = tensors["attention_mask"]
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        found = encoder(input_ids=tensors["input_ids"], attention_mask=mask)
        return found.last_hidden_state, mask.bool()

    def decode(
        self, cache: Any, vectors: torch.Tensor, encoded: torch.Tensor, **given: Any
    ) -> torch.Tensor:
        """Return the logits of tokens, (B, T, V).

        Args:
            cache: Of the decoder's P tokens, and of the vectors.
            vectors: (B, S, D); if the cache has their keys and values, their shape counts alone.
            encoded: bool (B, S), which of them belong to the row.
            given: `input_ids` (B, T), and perhaps `attention_mask` (B, P + T) and places (B, T).
        """
        from transformers.modeling_outputs import BaseModelOutput

        read = BaseModelOutput(last_hidden_state=vectors)
        return self.run(cache, encoder_outputs=read, attention_mask=encoded.long(), **_named(given))

    def begin(self, tensors: Tensors) -> Begun:
        from transformers import EncoderDecoderCache

        vectors, encoded = self.encode(tensors)
        own, cross = new_cache(), new_cache()
        cache, rows = EncoderDecoderCache(own, cross), len(vectors)
        ids = torch.tensor([self.start], device=self.device).expand(rows, -1)
        if self.languages:
            logits = self.decode(cache, vectors, encoded, input_ids=ids[:, :1])[:, -1]
            likely = logits[:, [*self.languages]].argmax(dim=1, keepdim=True)
            spoken = torch.tensor(self.languages, device=self.device)[likely]
            ids = torch.cat([ids[:, :1], spoken, ids[:, 1:]], dim=1)
        self.decode(cache, vectors, encoded, input_ids=ids[:, own.get_seq_length() :])
        # That was for the keys and values of what is read, too: the last is the first step's.
        states: States = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in states_of(own)]
        seen = torch.ones_like(ids[:, 1:], dtype=torch.bool)
        batch = Batch(states, seen, states_of(cross), encoded)
        return Begun(batch, ids.tolist(), encoded.sum(dim=1).tolist())

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        from transformers import EncoderDecoderCache

        from pipeline.models.directories.text.writing.growing_cache import growing

        assert batch.cross is not None, "begun by this class"
        assert batch.encoded is not None, "likewise"
        if batch.cache is None:
            batch.cache = EncoderDecoderCache(growing(batch.own), growing(batch.cross))
        batch.seen = with_column(batch.seen)
        given = {"input_ids": self.column(tokens), "attention_mask": batch.seen.long()}
        if self._takes_places:
            given["position_ids"] = self.column(places)
        vectors = batch.cross[0][0].new_zeros(1, 1, 1).expand(*batch.encoded.shape, 1)
        self._rows_places = [*places]
        try:
            logits = self.decode(batch.cache, vectors, batch.encoded, **given)
        finally:
            self._rows_places = None
        batch.own = states_of(batch.cache.self_attention_cache)
        return logits[:, -1].float()

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        from transformers import EncoderDecoderCache

        vectors, encoded = self.encode(tensors)
        ids = self.column([*before, *tokens[:-1]]).T
        cache = EncoderDecoderCache(new_cache(), new_cache())
        return self.decode(cache, vectors, encoded, input_ids=ids)[0, -len(tokens) :].float()

    def _placed(self, module: nn.Module, given: Any, found: torch.Tensor) -> Any:
        """Return the positions of each row, (B, 1, D), where the library has those of a batch."""
        rows, like = self._rows_places, given[0]
        if rows is None:
            return None
        # A module of positions looks at the shape of the tokens, and which of them are padding.
        size = (1, max(rows) + 1)
        no_padding = (getattr(module, "padding_idx", None) or 0) + 1
        tokens = like.new_full(size, no_padding) if isinstance(like, torch.Tensor) else size
        of_places = module.forward(tokens).reshape(size[1], -1)
        return of_places[torch.tensor(rows, device=of_places.device)][:, None].to(found.dtype)


class HeardDecoding(TargetDecoding):
    """A model of the library whose encoder hears clips of sound, alike in shape."""

    def encode(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        [features] = tensors.values()
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        vectors = encoder(features).last_hidden_state
        return vectors, _all_of(vectors)

    def decode(
        self, cache: Any, vectors: torch.Tensor, encoded: torch.Tensor, **given: Any
    ) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        read = BaseModelOutput(last_hidden_state=vectors)
        read.attention_mask = encoded.long()  # Moonshine's has it
        return self.run(cache, encoder_outputs=read, **_named(given))


class SeenDecoding(TargetDecoding):
    """A decoder that answers to the vectors of an image, which another model makes."""

    places_name = "position_ids"

    def __init__(
        self,
        model: nn.Module,
        text: Callable[[Sequence[int]], str],
        rules: Rules,
        encoder: nn.Module,
        projection: nn.Module | None = None,
    ) -> None:
        """Take the decoder, the encoder of images, and what is between them, if there is a layer.

        Args:
            model: A causal language model with layers that look at vectors.
            text: Makes a text of its tokens.
            rules: What it begins with.
            encoder: A model of images.
            projection: (B, S, D) -> (B, S, E).
        """
        super().__init__(model, text, rules)
        self.encoder, self.projection = encoder, projection or nn.Identity()

    def encode(self, tensors: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        [images] = tensors.values()
        vectors = self.projection(self.encoder(pixel_values=images).last_hidden_state)
        return vectors, _all_of(vectors)

    def decode(
        self, cache: Any, vectors: torch.Tensor, encoded: torch.Tensor, **given: Any
    ) -> torch.Tensor:
        seen = {"encoder_hidden_states": vectors, "encoder_attention_mask": encoded.long()}
        return self.run(cache, **seen, **given)


def _all_of(vectors: torch.Tensor) -> torch.Tensor:
    return torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device)


def _named(given: dict[str, Any]) -> dict[str, Any]:
    """Return the tokens of a decoder as a model with an encoder takes them."""
    return {f"decoder_{name}": value for name, value in given.items()}
