"""Modules of task `generate`: models that write a text for each row of a batch.

The library's `generate` runs models that answer an encoded text, a clip or an image, a whole batch
at a time. The caller still chooses each token, as for models that continue a text, so that rules
and records work the same way.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from pipeline.models.generate.cached_model import CachedModel, new_cache
from pipeline.models.generate.grammar import Grammar
from pipeline.models.generate.spec import Rules

Tensors = Mapping[str, torch.Tensor]
"""Model input of B rows: tensor name -> (B, ...)."""


class Begun(NamedTuple):
    """B rows before their first step."""

    batch: Any
    """State of the module, of a type that its class defines."""
    before: list[list[int]]
    """Tokens of each row before its output, at least one; the first step takes the last one."""
    num_input: list[int]
    """Tokens of the prompt, or vectors of the encoder, per row."""


class Decoding(CachedModel, ABC):
    """A model that writes."""

    def __init__(self, model: nn.Module, text: Callable[[Sequence[int]], str]) -> None:
        """Take the library's model or its decoder, and the function that decodes its tokens."""
        super().__init__(model)
        self.text = text
        self.grammar: Grammar | None = None
        """Grammar of the records that it writes; None: it writes texts."""

    most_rows: int | None = None
    """Most rows that can be written at once; None: any number."""

    @abstractmethod
    def begin(self, tensors: Tensors) -> Begun:
        """Read rows."""

    @abstractmethod
    def first_logits(self, begun: Begun) -> torch.Tensor:
        """Return the logits of the first token of each row, float32 (B, V)."""

    @abstractmethod
    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        """Return the logits, float32 (T, V), of the T tokens of an output, in one pass.

        Args:
            tensors: Model input of one row.
            before: The tokens before the output.
            tokens: The output, (T,).
        """

    def forward(self, *features: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        """Return the logits of the first tokens, so that a full batch can be tried at the start.

        Args:
            features: The input's only tensor, (B, ...);
            tensors: or its several tensors by name.
        """
        return self.first_logits(self.begin(tensors or {"features": features[0]}))

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def column(self, values: Sequence[int]) -> torch.Tensor:
        """Return one number per row as a tensor, int64 (B, 1)."""
        return torch.tensor(values, device=self.device)[:, None]


class Encoded(NamedTuple):
    """B rows that are encoded."""

    inputs: dict[str, Any]
    """Arguments of the model and its `generate`, in addition to the decoder's tokens."""
    ids: torch.Tensor
    """int64 (B, P): tokens of the decoder before the output."""


class LibraryDecoding(Decoding):
    """A model of the library with an encoder and a decoder."""

    ids_name = "decoder_input_ids"

    def __init__(
        self, model: nn.Module, text: Callable[[Sequence[int]], str], rules: Rules
    ) -> None:
        """Take a model, or its decoder alone, and the rules, which say how the decoder begins."""
        from transformers import GenerationConfig

        super().__init__(model, text)
        self.start, self.languages = list(rules.start), list(rules.languages)
        # Otherwise the library would apply its own rules on top of ours.
        model.generation_config = GenerationConfig()

    def read(self, tensors: Tensors) -> tuple[dict[str, Any], Sequence[int]]:
        """Return `Encoded.inputs`, and the number of tokens or vectors read per row, (B,)."""
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        if (mask := tensors.get("attention_mask")) is not None:
            encoded = encoder(input_ids=tensors["input_ids"], attention_mask=mask)
            return {"encoder_outputs": encoded, "attention_mask": mask}, mask.sum(dim=1).tolist()
        [features] = tensors.values()
        encoded = encoder(features)
        rows, length = encoded.last_hidden_state.shape[:2]
        return {"encoder_outputs": encoded}, [length] * rows

    def begin(self, tensors: Tensors) -> Begun:
        inputs, num_input = self.read(tensors)
        ids = self.column(self.start).T.expand(len(num_input), -1)
        if self.languages:
            logits = self._logits(inputs, ids[:, :1])[:, -1]
            likely = logits[:, self.languages].argmax(dim=1, keepdim=True)
            spoken = torch.tensor(self.languages, device=self.device)[likely]
            ids = torch.cat([ids[:, :1], spoken, ids[:, 1:]], dim=1)
        return Begun(Encoded(inputs, ids), ids.tolist(), [*num_input])

    def first_logits(self, begun: Begun) -> torch.Tensor:
        return self._logits(*begun.batch)[:, -1].float()

    def write(
        self,
        batch: Encoded,
        max_new_tokens: int,
        choose: Callable[[torch.Tensor], torch.Tensor],
        have_ended: Callable[[], torch.Tensor],
    ) -> None:
        """Write one token per row and step, until all rows have ended or are at the limit.

        Args:
            batch: B rows.
            max_new_tokens: The most tokens of a row.
            choose: Takes logits, float32 (B, V); the best of the returned logits come next.
            have_ended: Returns which rows have ended, bool (B,); their further tokens are ignored.
        """
        from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList
        from transformers.generation import StoppingCriteriaList

        # Some classes override `generate` to cut clips or add tokens.
        GenerationMixin.generate(
            self.model,
            **batch.inputs,
            **{self.ids_name: batch.ids},
            generation_config=GenerationConfig(
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                decoder_start_token_id=int(batch.ids[0, 0]),
            ),
            logits_processor=LogitsProcessorList([lambda _, logits: choose(logits)]),
            stopping_criteria=StoppingCriteriaList([lambda _, __, **___: have_ended()]),
        )

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        inputs, _ = self.read(tensors)
        ids = self.column([*before, *tokens[:-1]]).T
        return self._logits(inputs, ids)[0, -len(tokens) :].float()

    def _logits(self, inputs: dict[str, Any], ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model(**inputs, **{self.ids_name: ids}, use_cache=False).logits
        return logits


class AloneDecoding(LibraryDecoding):
    """A model that continues a text, whose states rows cannot share: each is a batch."""

    ids_name = "input_ids"
    most_rows = 1

    def read(self, tensors: Tensors) -> tuple[dict[str, Any], Sequence[int]]:
        return {}, tensors["attention_mask"].sum(dim=1).tolist()

    def begin(self, tensors: Tensors) -> Begun:
        _, [count] = self.read(tensors)
        ids = tensors["input_ids"][:, :count]
        return Begun(Encoded({}, ids), ids.tolist(), [count])

    def forward(self, *features: torch.Tensor, **tensors: torch.Tensor) -> torch.Tensor:
        num_rows = len(next(iter(tensors.values())))
        rows = [
            {name: part[row : row + 1] for name, part in tensors.items()} for row in range(num_rows)
        ]
        return torch.cat([self.first_logits(self.begin(row)) for row in rows])


def has_image_tokens(config: Any) -> bool:
    """Tell whether the model takes an image as tokens of the prompt."""
    return isinstance(getattr(config, "image_token_id", None), int)


def takes_tiles(model: nn.Module) -> bool:
    """Tell whether a model takes each image as tiles, (B, tiles, 3, H, W)."""
    return "pixel_attention_mask" in inspect.signature(model.forward).parameters


class BlipDecoding(LibraryDecoding):
    """The decoder of BLIP, which attends to the vectors of an image."""

    ids_name = "input_ids"

    def __init__(
        self, model: nn.Module, text: Callable[[Sequence[int]], str], rules: Rules
    ) -> None:
        super().__init__(model.text_decoder, text, rules)  # type: ignore[arg-type]
        self.encoder: Any = model.vision_model

    def read(self, tensors: Tensors) -> tuple[dict[str, Any], Sequence[int]]:
        [images] = tensors.values()
        vectors = self.encoder(pixel_values=images).last_hidden_state
        mask = torch.ones(vectors.shape[:2], dtype=torch.int64, device=vectors.device)
        inputs = {"encoder_hidden_states": vectors, "encoder_attention_mask": mask}
        return inputs, mask.sum(dim=1).tolist()


class ImagePromptDecoding(LibraryDecoding):
    """A model that continues the same tokens for each row, the image's among them."""

    ids_name = "input_ids"

    def read(self, tensors: Tensors) -> tuple[dict[str, Any], Sequence[int]]:
        [images] = tensors.values()
        pixels = images[:, None] if takes_tiles(self.model) else images
        return {"pixel_values": pixels}, [self.num_read()] * len(images)

    def num_read(self) -> int:
        """Return the number of tokens read per row."""
        return len(self.start)

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        # An output may contain the image token, so it needs a pass of its own.
        inputs, cache = self.read(tensors)[0], new_cache()
        logits = [self.run(cache, **inputs, input_ids=self.column(before).T)[0, -1:]]
        if len(tokens) > 1:
            logits.append(self.run(cache, input_ids=self.column(tokens[:-1]).T)[0])
        return torch.cat(logits).float()


class ImageFirstDecoding(ImagePromptDecoding):
    """GIT, whose image comes before all tokens and is not among them."""

    def num_read(self) -> int:
        """Return the number of the image's vectors."""
        embeddings: Any = self.model.git.image_encoder.vision_model.embeddings  # type: ignore[union-attr]
        return int(embeddings.num_positions)

    def plain(self, tensors: Tensors, before: Sequence[int], tokens: Sequence[int]) -> torch.Tensor:
        return LibraryDecoding.plain(self, tensors, before, tokens)
