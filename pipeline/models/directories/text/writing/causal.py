"""Models that continue a text.

Rows of a batch may have begun at different steps: keys and values are aligned on the right, so that
the next token of each row comes into the same column, and what is left of a row is masked.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pipeline.models.directories.text.cached_model import (
    moved,
    new_cache,
    places_of,
    states_of,
)
from pipeline.models.directories.text.writing.batch import Batch
from pipeline.models.directories.text.writing.decoding import Begun, Decoding, Tensors


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

    def first_logits(self, begun: Begun) -> torch.Tensor:
        places = [len(each) - 1 for each in begun.before]
        return self.step(begun.batch, [each[-1] for each in begun.before], places)

    def step(self, batch: Batch, tokens: Sequence[int], places: Sequence[int]) -> torch.Tensor:
        """Add a token to each row; return the logits of the next one, float32 (B, V).

        Args:
            batch: B rows; it is changed.
            tokens: (B,).
            places: (B,), of the tokens among those of the row, from 0 on.
        """
        if batch.cache is None:
            from pipeline.models.directories.text.writing.growing_cache import growing

            batch.cache = growing(batch.own)
        batch.seen = torch.cat([batch.seen, batch.seen.new_ones((len(batch.seen), 1))], dim=1)
        ids, at = self.column(tokens), self.column(places)
        logits = self.run_decoder(batch.cache, ids, at, batch.seen)
        batch.own = states_of(batch.cache)
        return logits[:, -1].float()

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        ids = self.column([*before, *tokens[:-1]]).T
        logits = self.model(input_ids=ids, use_cache=False).logits
        answers: torch.Tensor = logits[0, -len(tokens) :]
        return answers.float()
