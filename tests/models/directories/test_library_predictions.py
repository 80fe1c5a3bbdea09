"""Test that directories of images predict the same as their own library, for four images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.models.detector_snapshots import make_detector
from support.models.library_cases import MULTI, NAMES, compared
from support.models.snapshots import VISION_FAMILIES, change_json, make_snapshot, make_timm
from support.runs.jobs import job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec

SOURCE = {"uri": "in", "format": "parquet", "image_column": "image"}
PROMPTS = {"task": "zero_shot", "prompts": ["a dog", "the cat sat on the mat", "rain"]}
DETECT = {"min_score": 0.05}
VIT = {"img_size": 32, "depth": 2}


def siglip(folder: Path, *more: str) -> Path:
    path = make_snapshot(folder, "siglip", max_tokens=64)
    change_json(path / "tokenizer_config.json", model_input_names=["input_ids", *more])
    return path


CASES: Mapping[str, tuple[Callable[[Path], Path], Mapping[str, Any]]] = {
    "classify": (lambda folder: make_snapshot(folder, "vit", "image", id2label=NAMES), {}),
    "multilabel": (lambda folder: make_snapshot(folder, "vit", "image", **MULTI), {}),
    "regress": (lambda folder: make_snapshot(folder, "convnext", "image", num_labels=1), {}),
    "embed": (lambda folder: make_snapshot(folder, "dinov2"), {}),
    "a tower": (lambda folder: make_snapshot(folder, "clip"), {}),
    "one tower alone": (lambda folder: make_snapshot(folder, "clip", "vision"), {}),
    "prompts": (lambda folder: make_snapshot(folder, "clip"), PROMPTS),
    "prompts of sigmoids": (siglip, PROMPTS),
    "timm, classify": (lambda folder: make_timm(folder, "test_resnet", 3), {}),
    "timm, embed": (
        lambda folder: make_timm(folder, "vit_tiny_patch16_224", 0, **VIT),
        {"task": "embed"},
    ),
    "detect by softmax": (lambda folder: make_detector(folder, "detr"), DETECT),
    "detect by sigmoid": (lambda folder: make_detector(folder, "dab-detr"), DETECT),
}
FURTHER: Mapping[str, tuple[Callable[[Path], Path], Mapping[str, Any]]] = {
    **{
        f"{family} classify": (
            partial(make_snapshot, family=family, head="image", id2label=NAMES),
            {},
        )
        for family in VISION_FAMILIES
    },
    **{
        f"{family} embed": (partial(make_snapshot, family=family), {}) for family in VISION_FAMILIES
    },
    "siglip embed": (siglip, {"task": "embed"}),
    "siglip, one tower alone": (lambda folder: make_snapshot(folder, "siglip", "vision"), {}),
    "timm vit, classify": (lambda folder: make_timm(folder, "vit_tiny_patch16_224", 3, **VIT), {}),
    "timm, vectors before the labels": (
        lambda folder: make_timm(folder, "test_resnet", 3),
        {"task": "embed"},
    ),
}
"""Further families of what one family shows."""


def resolved(path: Path, model: Mapping[str, Any]) -> ModelSpec:
    spec = resolve_model(job_of({"path": str(path), **model}, SOURCE))
    return spec.fitted(pa.schema([("image", pa.large_binary())]))


@pytest.mark.parametrize(
    "case", quick_cases(((name,) for name in (*CASES, *FURTHER)), lambda name: name in CASES)
)
def test_predictions_are_those_of_the_library(case: str, tmp_path: Path):
    make, model = {**CASES, **FURTHER}[case]
    library = "timm" if case.startswith("timm") else "transformers"
    result = compared(resolved(make(tmp_path / "m"), model))
    assert result.startswith(library)
    assert result.endswith(" on 4 images")


def swapped(spec: ModelSpec) -> ModelSpec:
    return replace(spec, task=replace(spec.task, labels=spec.task.labels[::-1]))


WRONG: Mapping[str, tuple[str, Callable[[ModelSpec], ModelSpec], str]] = {
    "labels": ("classify", swapped, r"expected '\w+' 0.\d+, found"),
    "scores of labels": ("multilabel", swapped, "expected"),
    "pooling": ("embed", lambda spec: replace(spec, pooling="mean"), r"expected embedding\[\d+\]"),
    "labels of boxes": ("detect by softmax", swapped, r"expected '\w+' 0.\d+ at"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_prediction_that_differs_is_refused_with_both(name: str, tmp_path: Path):
    case, change, words = WRONG[name]
    make, model = CASES[case]
    spec = resolved(make(tmp_path / "m"), model)
    with pytest.raises(JobError, match=f"predicts something else for probe image 1: .*{words}"):
        compared(change(spec))


def test_a_tokenizer_that_gives_siglip_a_mask_is_refused(tmp_path: Path):
    """The model then sees no filling, and it was trained to see it."""
    spec = resolved(siglip(tmp_path / "m", "attention_mask"), PROMPTS)
    with pytest.raises(JobError, match=r"predicts something else for probe image 1: .*'rain'"):
        compared(spec)


def test_a_directory_is_held_in_a_process_of_its_own_unless_the_job_makes_the_pixels(
    tmp_path: Path,
):
    path = make_snapshot(tmp_path / "m", "vit", "image", id2label=NAMES)
    assert hold_to_library(resolved(path, {})).endswith(" on 4 images")
    change_json(path / "preprocessor_config.json", image_processor_type="PerceiverImageProcessor")
    assert not hold_to_library(given(path, {"mean": [0.5] * 3, "std": [0.5] * 3}))
    gray = make_snapshot(tmp_path / "gray", "vit", "image", id2label=NAMES, num_channels=1)
    assert not hold_to_library(given(gray, {"channels": "gray", "mean": [0.5], "std": [0.5]}))


def given(path: Path, transform: Mapping[str, Any]) -> ModelSpec:
    pixels = {"size_px": 32, "resize": "stretch", "interpolation": "bilinear", **transform}
    spec = resolve_model(job_of({"path": str(path)}, SOURCE, transform=pixels))
    return spec.fitted(pa.schema([("image", pa.large_binary())]))
