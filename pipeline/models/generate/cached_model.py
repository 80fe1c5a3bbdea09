"""A language model of the library that is run with a cache of keys and values."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

_CACHES = {"cache", "past_key_values"}
"""Names of the cache in releases of the library."""
TOLERANCE = 1e-3
"""Most difference of logits beside the largest, between two ways of computing them."""
_NUM_CHECKED = 5
_PLACED_BY_MASK = ("bloom", "mpt")
"""Model types without positions as input whose layers see the distance between two tokens."""
ONE_BY_ONE = "rows run one by one, which is slower: %s"
"""Of a warning, with the error of the trial in which they did not."""
States = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer, (B, heads, P, size) each."""


class CachedModel(nn.Module):
    """Runs a model, whatever the library calls its cache."""

    packs_linear_layers = True
    """Tell runtime `eager` to pack linear layers, as steps have few rows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        taken = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in taken else "past_key_values"
        self._takes = frozenset(taken)
        self.chooses_logits = "logits_to_keep" in taken
        """Whether it can compute the logits of chosen tokens only."""

    def run(self, cache: Any, **tensors: Any) -> torch.Tensor:
        """Run the model with a cache, which it may extend; return its logits (B, T, V)."""
        options = {self._cache_name: cache, "use_cache": True}
        logits: torch.Tensor = self.model(**tensors, **options).logits
        return logits

    def run_decoder(
        self,
        cache: Any,
        ids: torch.Tensor,
        places: torch.Tensor,
        mask: torch.Tensor | None = None,
        keep: int | torch.Tensor = 1,
    ) -> torch.Tensor:
        """Return the logits of T tokens of a model without an encoder.

        Args:
            cache: Keys and values of P tokens.
            ids: (B, T).
            places: (B, T), the position of each token in its text.
            mask: bool (B, P + T): which tokens are attended to; None: all.
            keep: How many of the last tokens get logits, or which ones, int64 (K,). Only if it
                `chooses_logits`; otherwise all tokens do.
        """
        rows, length = ids.shape
        if mask is None:
            mask = ids.new_ones((rows, length + cache.get_seq_length()), dtype=torch.bool)
        options: dict[str, Any] = {"position_ids": places} if "position_ids" in self._takes else {}
        if self.chooses_logits:
            options["logits_to_keep"] = keep
        return self.run(cache, input_ids=ids, attention_mask=mask.long(), **options)


@contextlib.contextmanager
def refused_for(task: str, name: str, cannot: str) -> Iterator[None]:
    """Refuse a model if the body raises.

    Args:
        task: The task of the job.
        name: The model's class.
        cannot: What the model cannot do, for the message.

    Raises:
        JobError: The body raised an error, which the message quotes.
    """
    try:
        yield
    except Exception as error:
        reason = clean_message(f"{type(error).__name__}: {error}", 200)
        raise JobError(
            f"model.task = {task!r}: {name} of model.path cannot {cannot}: {reason}; take another "
            "model"
        ) from error


@torch.no_grad()
def require_causal(model: Any, task: str) -> None:
    """Refuse a model whose logits of a token depend on those that follow.

    Raises:
        JobError: They do, as of encoders that are no decoders by their configuration.
    """
    ids = torch.arange(_NUM_CHECKED)[None] % model.get_input_embeddings().num_embeddings
    name = type(model).__name__
    with refused_for(task, name, "continue a text"):
        logits = [model(input_ids=ids[:, :end]).logits[0, 0] for end in (1, _NUM_CHECKED)]
        off = float((logits[0] - logits[1]).abs().max())
    if not off <= TOLERANCE * max(1.0, float(logits[0].abs().max())):
        raise JobError(
            f"model.task = {task!r}: {name} of model.path is no language model: its logits of a "
            "token depend on the tokens that follow; if it was trained as a decoder, put "
            "is_decoder: true into config.json"
        )


def new_cache() -> Any:
    """Return an empty cache of the library."""
    from transformers import DynamicCache

    return DynamicCache()


def can_share(cls: Any, config: Any) -> bool:
    """Tell whether rows of several lengths can share the states of a model that continues texts.

    They can if these are keys and values of each token, whose positions are given. States of
    linear attention, indexes and compressed keys are the library's, which rows have one by one.

    Args:
        cls: A class of the library.
        config: Its configuration.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    taken = inspect.signature(cls.forward).parameters.keys()
    is_placed = "position_ids" in taken or config.model_type in _PLACED_BY_MASK
    if not is_placed or not _CACHES & taken or getattr(cls, "_is_stateful", False):
        return False
    with contextlib.suppress(Exception):  # some configurations name no layers
        layers = DynamicCache(config=config.get_text_config(decoder=True)).layers
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
    return True


def states_of(cache: Any) -> States:
    """Return the keys and values of each layer, (B, heads, P, size) each."""
    return [(layer.keys, layer.values) for layer in cache.layers]


def moved(states: States, columns: torch.Tensor) -> States:
    """Return keys and values with the columns of each row rearranged, (B, P)."""
    index = columns.clamp(min=0)[:, None, :, None]

    def of(part: torch.Tensor) -> torch.Tensor:
        return part.gather(2, index.expand(-1, part.shape[1], -1, part.shape[3]))

    return [(of(keys), of(values)) for keys, values in states]


def places_of(start: int, end: int, like: torch.Tensor) -> torch.Tensor:
    """Return the positions from start to end for each row of (B, L): int64 (B, end - start)."""
    return torch.arange(start, end, device=like.device).expand(len(like), -1)
