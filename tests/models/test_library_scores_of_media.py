"""Scores of directories of images are those of the libraries' own pipelines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.library_cases import (
    EVERY,
    MULTI,
    NAMES,
    PROMPTS,
    ZERO_SHOT,
    Case,
    Results,
    best,
    embedding,
    labels,
    made,
    of_pipeline,
    require_scores_of_the_library,
)
from support.models.snapshots import VISION_FAMILIES, change_json, make_snapshot, make_timm
from support.runs.selection import quick_cases

Maker = Callable[[Path], Path]
Vectors = Callable[[Any, Any], torch.Tensor]
"""A model and what its processor makes of rows -> their vectors."""


def of_timm(*, are_vectors: bool) -> Callable[[Path, Any], Results]:
    def give(path: Path, rows: Any) -> Results:
        import timm
        from timm.data import create_transform, resolve_data_config

        model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
        transform = create_transform(**resolve_data_config({}, model=model))
        pixels = torch.stack([transform(image) for image in rows])
        with torch.inference_mode():
            if are_vectors:
                return model.forward_head(model.forward_features(pixels), pre_logits=True).tolist()
            scores = model(pixels).softmax(1).tolist()
        return [dict(zip(("cat", "dog", "fox"), row, strict=True)) for row in scores]

    return give


def of_model(vectors: Vectors, name: str = "AutoModel") -> Callable[[Path, Any], Results]:
    """What a class of transformers makes of rows, each alone."""

    def give(path: Path, rows: Any) -> Results:
        import transformers

        model = getattr(transformers, name).from_pretrained(path).eval()
        prepare = transformers.AutoImageProcessor.from_pretrained(path)
        with torch.inference_mode():
            given = [prepare(row, return_tensors="pt") for row in rows]
            return [vectors(model, item)[0].tolist() for item in given]

    return give


def hidden(model: Any, given: Any) -> torch.Tensor:
    return model(**given).last_hidden_state


def pooled(model: Any, given: Any) -> torch.Tensor:
    return model(**given).pooler_output


def first(model: Any, given: Any) -> torch.Tensor:
    return hidden(model, given)[:, 0]


def mean(model: Any, given: Any) -> torch.Tensor:
    states = hidden(model, given)
    return states.mean((2, 3) if states.ndim == 4 else 1)


def of_features(model: Any, given: Any) -> torch.Tensor:
    return model.get_image_features(**given).pooler_output


def projected(model: Any, given: Any) -> torch.Tensor:
    return model(**given).image_embeds


def siglip(folder: Path) -> Path:
    """SigLIP as it is: texts of 64 tokens, and a tokenizer that gives no attention mask."""
    path = make_snapshot(folder, "siglip", max_tokens=64)
    change_json(path / "tokenizer_config.json", model_input_names=["input_ids"])
    return path


def timm(name: str, **options: Any) -> Maker:
    names = ["cat", "dog", "fox"]
    return lambda folder: make_timm(folder, name, 3, label_names=names, **options)


ALL_IMAGES = of_pipeline("image-classification", top_k=None, function_to_apply=None)
PROMPTED = of_pipeline(
    "zero-shot-image-classification", candidate_labels=PROMPTS, hypothesis_template="{}"
)
SMALL_VIT = {"img_size": 32, "depth": 2}
IMAGES = {
    **{
        f"{family} classify": Case(made(family, "image", id2label=NAMES), ALL_IMAGES, best)
        for family in VISION_FAMILIES
    },
    "vit multilabel": Case(made("vit", "image", **MULTI), ALL_IMAGES, labels, EVERY),
    **{
        f"{family} zero_shot": Case(make, PROMPTED, best, ZERO_SHOT)
        for family, make in (("clip", made("clip")), ("siglip", siglip))
    },
    **{
        f"{family} embed": Case(
            made(family, "none"),
            of_model(pooled if family == "convnext" else first),
            embedding,
            {"task": "embed"},
        )
        for family in VISION_FAMILIES
    },
    **{
        f"{family} embed mean": Case(
            made(family, "none"),
            of_model(mean),
            embedding,
            {"task": "embed", "pooling": "mean"},
        )
        for family in VISION_FAMILIES
    },
    **{
        f"{family} embed": Case(made(family), of_model(of_features), embedding, {"task": "embed"})
        for family in ("clip", "siglip")
    },
    "clip tower embed": Case(
        made("clip", "vision"),
        of_model(projected, "CLIPVisionModelWithProjection"),
        embedding,
    ),
    "siglip tower embed": Case(
        made("siglip", "vision"), of_model(pooled, "SiglipVisionModel"), embedding
    ),
    **{
        f"{name} classify": Case(timm(name, **options), of_timm(are_vectors=False), best)
        for name, options in (("test_resnet", {}), ("vit_tiny_patch16_224", SMALL_VIT))
    },
    **{
        f"{name} embed": Case(
            timm(name, **options), of_timm(are_vectors=True), embedding, {"task": "embed"}
        )
        for name, options in (("test_resnet", {}), ("vit_tiny_patch16_224", SMALL_VIT))
    },
}
# Of vectors nothing evens out that timm resizes on Pillow.
CASES = {
    name: case._replace(rows="image", tolerance=1e-2 if case.columns is embedding else 1e-3)
    for name, case in IMAGES.items()
}
LONG = (
    *(f"{family} embed" for family in VISION_FAMILIES if family not in ("vit", "convnext")),
    *(f"{family} embed mean" for family in VISION_FAMILIES if family not in ("vit", "convnext")),
)
"""Further families of what one family shows."""


@pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in CASES), lambda name: name not in LONG)
)
def test_scores_are_those_of_the_librarys_own_pipeline(name: str, tmp_path: Path):
    require_scores_of_the_library(CASES[name], tmp_path / "model")
