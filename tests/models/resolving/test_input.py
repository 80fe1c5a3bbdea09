"""The job's transform section changes what the model says, and has no field without an effect."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.core.errors import JobError
from pipeline.job.transform import Transform
from pipeline.models.resolving.input import choose_transform
from pipeline.preprocessing.images.transform import TransformSpec

HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
CROP = TransformSpec(224, 256, "bicubic", **HALF)
SQUASHED = TransformSpec(224, None, "bicubic", **HALF, resize="stretch")
FULL = {"size_px": 32, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}

GRAY = {"channels": "gray", "mean": [0.5], "std": [0.5]}


def chosen(default: TransformSpec | None = CROP, **fields: Any) -> TransformSpec:
    return choose_transform("m", default and default.to_dict(), Transform(**fields))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, CROP),
        ({"size_px": 112}, TransformSpec(112, 128, "bicubic", **HALF)),
        ({"size_px": [112, 56]}, TransformSpec((112, 56), 128, "bicubic", **HALF)),
        ({"size_px": [96, 96]}, TransformSpec(96, 110, "bicubic", **HALF)),
        ({"resize": "stretch"}, SQUASHED),
        ({"interpolation": "bilinear"}, TransformSpec(224, 256, "bilinear", **HALF)),
        ({"size_px": 9, "resize_px": 10}, TransformSpec(9, 10, "bicubic", **HALF)),
        ({"resize": "shortest"}, CROP),
        (
            {"resize": "pad", "pad_value": 114},
            TransformSpec(224, None, "bicubic", **HALF, resize="pad", pad_value=114),
        ),
        ({"resize": "none"}, TransformSpec(224, None, None, **HALF, resize="none")),
        (
            {"channels": "gray", "mean": [0.4], "std": [0.3]},
            TransformSpec(224, 256, "bicubic", (0.4,), (0.3,), channels="gray"),
        ),
    ],
)
def test_what_a_job_says_changes_what_the_model_says(fields: dict, expected: TransformSpec):
    assert chosen(**fields) == expected


def test_a_model_that_stretches_does_so_at_other_sizes():
    assert chosen(SQUASHED, size_px=384).resize_px is None
    both = TransformSpec((20, 30), (22, 33), "bicubic", **HALF, resize="stretch")
    assert chosen(both, size_px=[40, 60]).resize_px == (44, 66)
    assert chosen(both, size_px=[40, 60], resize_px=[50, 70]).resize_px == (50, 70)


@pytest.mark.parametrize(
    ("default", "fields", "words"),
    [
        (SQUASHED, {"pad_value": 3}, "transform.pad_value: has no effect with resize 'stretch'"),
        (None, {**FULL}, "brings no transform; give resize_px$"),
        (None, {"resize": "pad"}, "give size_px, interpolation, mean, std$"),
        (None, {"resize": "none"}, "give mean, std$"),
        (CROP, {"channels": "gray"}, "m brings no transform; give mean, std$"),
        (CROP, {"mean": [0.5], "std": [0.5]}, "must have 3 values each"),
        (CROP, {"resize": "none", "interpolation": "bilinear"}, "interpolation: has no effect"),
        (CROP, {"resize": "none", "resize_px": 3}, "resize_px: has no effect with resize 'none'"),
        (CROP, {"resize": "none", "shrink_on_load": True}, "shrink_on_load: has no effect"),
        (CROP, {"resize": "stretch", "pad_value": 3}, "pad_value: has no effect with resize 's"),
        (CROP, {**GRAY, "mean": [0.5] * 3}, "mean has 3 and std 1 values, .* 1 value each, with"),
        (CROP, {"channels": "rgb", "std": [0.5]}, "mean has 3 and std 1 values, .* 3 values each"),
        (CROP, {**GRAY, "resize": "pad", "pad_value": [1, 2, 3]}, r"pad_value is \[1, 2, 3\]; it"),
        (None, {}, "give size_px, resize_px, interpolation, mean, std$"),
        (CROP, {"size_px": [300, 200], "resize_px": 256}, r"at least size_px \(\[300, 200\]\)"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(default, fields: dict, words: str):
    with pytest.raises(JobError, match=words) as caught:
        chosen(default, **fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("resize", "pad"), ("resize_px", 40), ("interpolation", "bicubic"), ("pad_value", 7)),
        *(("channels", "gray"), ("shrink_on_load", True), ("mean", [0.0] * 5)),
    ],
)
def test_a_factory_replaces_all_but_the_size_and_the_normalisation(field: str, value: Any):
    fields = {**HALF, "factory": "own_transforms:composed", field: value}
    words = "mean has 5 values" if field == "mean" else f"{field} has no effect with factory"
    with pytest.raises(JobError, match=words):
        choose_transform("m", CROP.to_dict(), Transform(**fields), allow_import=["own_transforms"])


@pytest.mark.parametrize(
    "fields",
    [
        {"size_px": 32, "resize_px": 40_000},
        {"size_px": 40_000, "resize": "none"},
        {"size_px": 224, "resize": "stretch", "resize_px": [50_000, 20_000]},
        {"size_px": 40_000, "resize": "pad", "resize_px": 224},
    ],
)
def test_sizes_that_no_image_may_decode_to_are_refused(fields: dict):
    with pytest.raises(JobError, match=r"at least .* allowed are 100000000 \(source.max_image_px"):
        choose_transform("m", CROP.to_dict(), Transform(**fields), max_image_px=100_000_000)
    assert choose_transform("m", CROP.to_dict(), Transform(), max_image_px=10) == CROP
