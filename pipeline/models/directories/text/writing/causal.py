"""Models that continue their prompt, with an image before it, in it, or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from pipeline.models.directories.text.cached_model import (
    moved,
    new_cache,
    places_of,
    states_of,
)
from pipeline.models.directories.text.writing.batch import Batch
from pipeline.models.directories.text.writing.decoding import (
    Begun,
    Decoding,
    Tensors,
    with_column,
)
from pipeline.models.directories.text.writing.pictured import pixel_values


class CausalDecoding(Decoding):
    """A model that continues a text."""

    def begin(self, tensors: Tensors) -> Begun:
        ids, lengths = tensors["input_ids"], tensors["attention_mask"].sum(dim=1)
        counts = lengths.tolist()
        before = [row[:count] for row, count in zip(ids.tolist(), counts, strict=True)]
        # The last token of each is the first step's.
        width = max(counts) - 1
        read = ids[:, :width] if width else torch.zeros_like(ids[:, :1])  # of no row
        columns = places_of(0, read.shape[1], ids) - (read.shape[1] + 1 - lengths)[:, None]
        cache = new_cache()
        self.run_decoder(cache, read, places_of(0, read.shape[1], ids))
        own = moved(states_of(cache), columns)
        return Begun(Batch(own, columns >= 0), before, counts)

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        if batch.cache is None:
            from pipeline.models.directories.text.writing.growing_cache import growing

            batch.cache = growing(batch.own)
        batch.seen = with_column(batch.seen)
        ids, at = self.column(tokens), self.column(places)
        logits = self.run_decoder(batch.cache, ids, at, self.mask(batch.seen))
        batch.own = states_of(batch.cache)
        return logits[:, -1].float()

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        ids = self.column([*before, *tokens[:-1]]).T
        logits = self.model(input_ids=ids, use_cache=False).logits
        answers: torch.Tensor = logits[0, -len(tokens) :]
        return answers.float()

    def mask(self, seen: torch.Tensor) -> torch.Tensor:
        """Return which columns, bool (B, P), each row sees, as the model takes it."""
        return seen


class PicturedDecoding(CausalDecoding):
    """A model that continues tokens which are the same for each row, an image among them."""

    def __init__(
        self, model: nn.Module, text: Callable[[Sequence[int]], str], start: Sequence[int]
    ) -> None:
        """Take a model, what makes a text of its tokens, and the tokens.

        Args:
            model: Takes `input_ids` and `pixel_values`.
            text: Makes a text of tokens.
            start: As many of them stand for the image as it has vectors, unless it comes before.
        """
        super().__init__(model, text)
        self.start = list(start)

    def begin(self, tensors: Tensors) -> Begun:
        [images] = tensors.values()
        cache, rows = new_cache(), len(images)
        ids = self.column(self.start).T.expand(rows, -1)
        self.run(cache, input_ids=ids, pixel_values=pixel_values(self.model, images))
        # The last token is the first step's.
        own = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in states_of(cache)]
        width = own[0][0].shape[2]
        seen = torch.ones((rows, width), dtype=torch.bool, device=images.device)
        return Begun(Batch(own, seen), [self.start] * rows, [self.num_read(width + 1)] * rows)

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        # An output may have the token that stands for an image, so it is no part of that pass.
        batch, cache = self.begin(tensors).batch, new_cache()
        for number, (keys, values) in enumerate(batch.own):
            cache.update(keys, values, number)
        ids = self.column([before[-1], *tokens[:-1]]).T
        first = len(before) - 1
        places = places_of(first, first + len(tokens), ids)
        return self.run_decoder(cache, ids, places, keep=len(tokens))[0].float()

    def num_read(self, columns: int) -> int:
        """Return what is read of a row, of so many columns of keys and values."""
        return columns


class ImageFirstDecoding(PicturedDecoding):
    """The same of GIT, whose images come before all tokens and are none of them."""

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        [images] = tensors.values()
        ids = self.column([*before, *tokens[:-1]]).T
        logits = self.model(input_ids=ids, pixel_values=images, use_cache=False).logits
        answers: torch.Tensor = logits[0, -len(tokens) :]
        return answers.float()

    def num_read(self, columns: int) -> int:
        """Return the vectors of the image."""
        return columns - len(self.start)

    def mask(self, seen: torch.Tensor) -> torch.Tensor:
        """Return it as what is added to scores, (B, 1, 1, P): the library takes that as it is.

        To a mask (B, P) it adds columns of images, which here are among the columns already.
        """
        dtype = next(self.model.parameters()).dtype
        unseen = torch.zeros_like(seen, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        return unseen[:, None, None]
