"""Speech in windows: the library writes a long clip by its own sequential algorithm.

A window is as long as the model's encoder reads at once. The timestamps that the model writes there
say where the next window begins. The library chooses all tokens, greedily; the rules of the
directory are its settings.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.models.generate.decoding import Begun, LibraryDecoding, Tensors
from pipeline.models.generate.spec import Rules


class Segment(NamedTuple):
    """A part of the text of a clip, with its times in the clip."""

    start_s: float
    end_s: float
    text: str


@dataclass
class Window:
    """A part of a clip, and all that the model has written to it."""

    before: list[int]
    """Tokens of the decoder before the output."""
    tokens: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Sum over the tokens."""


class Clips(NamedTuple):
    """Clips that are written in windows."""

    features: torch.Tensor
    """(B, M, T)."""


def writes_windows(model: Any, rules: Rules) -> bool:
    """Tell whether the library writes clips of any length with a model, and with times."""
    takes = inspect.signature(model.generate).parameters
    return "monitor_progress" in takes and rules.times_from is not None and len(rules.ends) == 1


class WindowedDecoding(LibraryDecoding):
    """A model of speech that writes a batch of short clips, or each clip in windows."""

    def __init__(
        self,
        model: nn.Module,
        text: Callable[[Sequence[int]], str],
        rules: Rules,
        *,
        timestamps: bool,
    ) -> None:
        """Take a model, its decoder of tokens and its rules; with timestamps all have windows."""
        super().__init__(model, text, rules)
        config: Any = model.config
        self._timestamps, self._ends = timestamps, rules.ends
        self._num_frames = 2 * config.max_source_positions  # convolutions halve them
        self._settings = _settings(rules, config.pad_token_id)

    def begin(self, tensors: Tensors) -> Begun:
        [features] = tensors.values()
        rows, _, length = features.shape
        if length <= self._num_frames and not self._timestamps:
            return super().begin(tensors)
        return Begun(Clips(features), [self.start] * rows, [length // 2] * rows)

    def first_logits(self, begun: Begun) -> torch.Tensor:
        if isinstance(begun.batch, Clips):
            begun = super().begin(self._first_window(begun.batch.features))
        return super().first_logits(begun)

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits of an output; that of a long clip is its first window's."""
        [features] = tensors.values()
        return super().plain(self._first_window(features), before, tokens)

    def _first_window(self, features: torch.Tensor) -> Tensors:
        return {"features": features[..., : self._num_frames]}

    def write_clip(
        self, features: torch.Tensor, max_new_tokens: int, note_step: Callable[[], None]
    ) -> tuple[list[Window], list[Segment]]:
        """Write a clip.

        Args:
            features: (1, M, T), T at least the length of a window.
            max_new_tokens: The most tokens of a window.
            note_step: Called after each token.

        Returns:
            The windows in order, and the segments that have a text. What is written behind the
            last pair of timestamps of a window is in the next window again, so in no segment.
        """
        windows: list[Window] = []
        begun, logits = False, torch.empty(0)

        def keep_logits(_: nn.Module, __: Any, outputs: Any) -> None:
            nonlocal logits
            logits = outputs.logits[0, -1]

        def begin_window(_: torch.Tensor) -> None:
            nonlocal begun
            begun = False

        def take(ids: torch.Tensor, _: Any, **__: Any) -> torch.Tensor:
            nonlocal begun
            *before, token = ids[0].tolist()
            if not begun:
                begun = True
                windows.append(Window(before))
            windows[-1].tokens.append(token)
            windows[-1].logprob += float(logits.float().log_softmax(dim=0)[token])
            note_step()
            return torch.zeros(1, dtype=torch.bool, device=ids.device)

        from transformers.utils import logging

        hook = self.model.register_forward_hook(keep_logits)
        level = logging.get_verbosity()
        logging.set_verbosity_error()  # it warns of the tokens that begin each window
        try:
            written = self.model.generate(  # type: ignore[operator]
                features,
                attention_mask=torch.ones_like(features[:, 0], dtype=torch.int64),
                generation_config=self._settings(max_new_tokens),
                return_timestamps=True,
                return_segments=True,
                monitor_progress=begin_window,
                stopping_criteria=[take],
            )
        finally:
            logging.set_verbosity(level)
            hook.remove()
        [parts] = written["segments"]
        segments = [
            Segment(round(float(part["start"]), 2), round(float(part["end"]), 2), text)
            for part in parts
            if (text := self.text(part["tokens"].tolist()))
        ]
        return windows, segments

    def have_ended(self, windows: Sequence[Window]) -> bool:
        """Tell whether all windows have an end, so that none was at the limit of tokens."""
        return all(window.tokens[-1] in self._ends for window in windows)


def _settings(rules: Rules, pad: int | None) -> Callable[[int], Any]:
    """Return the function that makes the library's settings by the most tokens of a window."""
    from transformers import GenerationConfig

    first, *rest = rules.start
    begins = [None, *rest] if rules.languages else rest  # None: the likeliest language
    values = {
        **{"do_sample": False, "num_beams": 1},
        "eos_token_id": rules.ends[0],
        "pad_token_id": pad,
        "decoder_start_token_id": first,
        "forced_decoder_ids": [[place, token] for place, token in enumerate(begins, 1)],
        "lang_to_id": {str(token): token for token in rules.languages},
        "no_timestamps_token_id": (rules.times_from or 0) - 1,
        "max_initial_timestamp_index": rules.latest_begin,
        "suppress_tokens": [*rules.banned],
        "begin_suppress_tokens": [*rules.banned_first],
        "bad_words_ids": [[*word] for word in rules.banned_words],
        "forced_bos_token_id": rules.first,
        "forced_eos_token_id": [*rules.last],
        "min_length": rules.min_length,
        "min_new_tokens": rules.min_new_tokens,
        "repetition_penalty": rules.repetition_penalty,
        "no_repeat_ngram_size": rules.no_repeat_ngram,
    }
    asked = {name: value for name, value in values.items() if value or value == 0}

    return lambda max_new_tokens: GenerationConfig(**asked, max_new_tokens=max_new_tokens)
