"""Modules for images: a model of the library, reduced to a vector or to logits.

`forward` takes `pixels`, float (B, 3, H, W), normalised.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipeline.models.detection.boxes import corners


class ImageModule(nn.Module):
    """Logits (B, K) or vectors (B, D) of images, or of clips of sound."""

    def __init__(self, model: nn.Module, output: str) -> None:
        """Make the module.

        Args:
            model: A class of transformers whose only input is its `main_input_name`.
            output: `logits`, `cls`, `mean`, `pooler` or `projection`.
        """
        super().__init__()
        self.model = model
        self.output = output
        self.takes: str = model.main_input_name  # type: ignore[assignment]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        outputs = self.model(**{self.takes: pixels})
        if self.output == "logits":
            return outputs.logits  # type: ignore[no-any-return]
        if self.output == "projection":
            name = "image_embeds" if self.takes == "pixel_values" else "audio_embeds"
            return getattr(outputs, name)  # type: ignore[no-any-return]
        return pooled(outputs, self.output)


class RawModule(nn.Module):
    """All outputs of a model of the library by their names, of images, clips or texts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.takes: str = model.main_input_name  # type: ignore[assignment]

    def forward(self, *features: torch.Tensor, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return tensors (B, ...).

        Args:
            features: The only tensor of the input, (B, ...);
            tensors: or its several tensors by name.
        """
        outputs = self.model(**(tensors or {self.takes: features[0]}))
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def pooled(outputs: Any, pooling: str) -> torch.Tensor:
    """Return the vectors (B, D) from the outputs of a model: `cls`, `mean` or `pooler`."""
    if pooling == "pooler":
        return outputs.pooler_output.flatten(1)  # type: ignore[no-any-return]
    vectors: torch.Tensor = outputs.last_hidden_state
    if pooling == "mean":
        return vectors.flatten(2).mean(2) if vectors.ndim == 4 else vectors.mean(1)
    return vectors[:, 0]


def _one_tower(model: Any, kept: str) -> Any:
    """Return a model of two towers without the other one, which can give its memory back."""
    tower = copy.copy(model)
    dropped = {"vision_model", "text_model"} - {kept}
    tower._modules = {**model._modules, **dict.fromkeys(dropped)}
    return tower


def features(outputs: Any) -> torch.Tensor:
    """Return the vectors (B, D) from the result of a model's own `get_..._features`."""
    vectors = getattr(outputs, "pooler_output", outputs)  # before transformers 5 the vectors alone
    # FLAVA projects all tokens of a text: the first one stands for it.
    return vectors[:, 0] if vectors.ndim == 3 else vectors  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """Vectors (B, D) of images, in the space that images and texts share."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _one_tower(model, "vision_model")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return features(self.model.get_image_features(pixel_values=pixels))


class AudioTower(nn.Module):
    """Vectors (B, D) of clips of sound, of length 1, in the space that clips and texts share."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.tower: nn.Module = model.audio_model
        self.projection: nn.Module = model.audio_projection

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        pooled = self.tower(input_features=features).pooler_output
        return nn.functional.normalize(self.projection(pooled), dim=-1)


class ImageZeroShot(nn.Module):
    """Logits (B, K) of images for K prompts, as the library's model of two towers gives them."""

    prompts: torch.Tensor
    """float (K, D), of length 1."""

    def __init__(self, model: Any, prompts: torch.Tensor) -> None:
        """Make the module.

        Args:
            model: A model of two towers.
            prompts: float (K, D), the vectors of the prompts, of length 1.
        """
        super().__init__()
        self.tower = ImageTower(model)
        bias = getattr(model, "logit_bias", torch.zeros(1))
        self.register_buffer("prompts", prompts.detach())
        self.register_buffer("scale", model.logit_scale.detach().exp())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        vectors = nn.functional.normalize(self.tower(pixels), dim=1)
        return vectors @ self.prompts.T * self.get_buffer("scale") + self.get_buffer("bias")


class TextTower(nn.Module):
    """Vectors (B, D) of texts, in the space that images and texts share."""

    def __init__(self, model: Any, fixed_tokens: int | None, pad_id: int) -> None:
        """Make the module.

        Args:
            model: A model of two towers.
            fixed_tokens: Fill each text up to this and attend to all of it, as SigLIP is trained.
            pad_id: What it is filled with.
        """
        super().__init__()
        self.model = _one_tower(model, "text_model")
        self.fixed_tokens = fixed_tokens
        self.pad_id = pad_id

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        given = {"input_ids": input_ids, "attention_mask": attention_mask}
        if self.fixed_tokens is not None:
            filled = torch.where(attention_mask == 1, input_ids, self.pad_id)
            missing = self.fixed_tokens - filled.shape[1]
            given = {"input_ids": nn.functional.pad(filled, (0, missing), value=self.pad_id)}
        return features(self.model.get_text_features(**given))


class DetectorModule(nn.Module):
    """Logits (B, Q, K) and boxes (B, Q, 4) of the queries of a detector.

    Boxes are centre x, centre y, width, height, as shares of the image. All images of a batch have
    one shape, so there is no mask of padding.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.model(pixel_values=pixels)
        return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}


class PromptedDetector(nn.Module):
    """Logits (B, Q, K) and boxes (B, Q, 4) of images for K prompts, as OWL-ViT's."""

    prompts: torch.Tensor
    """float (K, D), of length 1."""

    def __init__(self, model: Any, prompts: torch.Tensor) -> None:
        """Make the module.

        Args:
            model: A detector of the library that compares parts of an image with texts.
            prompts: float (K, D), the vectors of the prompts, of length 1.
        """
        super().__init__()
        self.model = model
        self.register_buffer("prompts", prompts.detach())

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        maps, _ = self.model.image_embedder(pixel_values=pixels)
        vectors = maps.flatten(1, 2)
        logits, _ = self.model.class_predictor(vectors, self.prompts.expand(len(pixels), -1, -1))
        return {"logits": logits, "pred_boxes": self.model.box_predictor(vectors, maps)}


class JointDetector(nn.Module):
    """Boxes in pixels of the input, their scores and label ids, as of Grounding DINO.

    Images and texts see each other in its layers, so each prompt takes a pass, as in the library's
    pipeline.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:
        """Make the module.

        Args:
            model: A detector of the library that gives a logit for each token of a text.
            prompts: The token ids of K prompts.
        """
        super().__init__()
        self.model = model
        self.lengths = [len(ids) for ids in prompts]
        self.register_buffer("ids", torch.tensor([number for ids in prompts for number in ids]))

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        size, sides = len(pixels), pixels.shape[:1:-1] * 2
        boxes, scores, label_ids = [], [], []
        for label_id, ids in enumerate(torch.split(self.get_buffer("ids"), self.lengths)):
            outputs = self.model(pixel_values=pixels, input_ids=ids.expand(size, -1))
            boxes.append(corners(outputs.pred_boxes) * outputs.pred_boxes.new_tensor(sides))
            scores.append(outputs.logits.float().sigmoid().amax(dim=2))
            label_ids.append(torch.full_like(scores[-1], label_id))
        joined = (torch.cat(parts, dim=1) for parts in (boxes, scores, label_ids))
        return dict(zip(("boxes", "scores", "label_ids"), joined, strict=True))


class TimmVectors(nn.Module):
    """One vector (B, D) per image, as timm pools it before its classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        features = self.model.forward_features(pixels)
        return self.model.forward_head(features, pre_logits=True)  # type: ignore[no-any-return]
