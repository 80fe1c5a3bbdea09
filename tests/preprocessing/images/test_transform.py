"""Test which transforms are refused, and their form as JSON."""

from __future__ import annotations

import json

import pytest

from pipeline.preprocessing.images.transform import TransformSpec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_spec(size_px: int = 24, resize_px: int = 27, interpolation: str = "bilinear"):
    return TransformSpec(size_px, resize_px, interpolation, MEAN, STD)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize_px": 23}, "resize_px is 23"),
        ({"size_px": 0}, "size_px is 0"),
        ({"interpolation": "cubic"}, "bilinear-plain, bicubic"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"mean": (0.5,)}, "they must have 3 values each, one a channel, with channels 'rgb'"),
        ({"resize": "squash"}, "shortest, stretch, pad, none"),
        ({"resize": "none"}, "no effect with resize 'none'"),
        ({"pad_value": 3}, "pad_value has no effect with resize 'shortest'"),
        ({"resize": "pad", "pad_value": 300}, "pad_value is 300"),
        ({"resize": "pad", "pad_value": (1, 2)}, r"0 to 255, or 3 of these"),
        ({"channels": "gray"}, "must have 1 value each"),
        ({"size_px": (0, 3)}, r"size_px is \[0, 3\]"),
        ({"size_px": None, "resize_px": None, "resize": "stretch"}, "needs size_px"),
        ({"resize_px": None}, "needs resize_px"),
        ({"resize_px": (24, 23)}, r"resize_px is \[24, 23\]"),
    ],
)
def test_impossible_specs_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformSpec.from_dict({**make_spec().to_dict(), **change})


def test_the_json_of_a_transform_leaves_out_defaults():
    assert make_spec().to_dict() == {
        "size_px": 24,
        "resize_px": 27,
        "interpolation": "bilinear",
        "mean": [*MEAN],
        "std": [*STD],
    }


@pytest.mark.parametrize(
    "spec",
    [
        TransformSpec(224, 256, "bicubic", (0, 0.5, 1), (1, 1, 1)),
        TransformSpec((24, 30), 31, "bilinear", MEAN, STD, crop_start="floor"),
        TransformSpec((24, 30), (25, 31), "lanczos", MEAN, STD, resize="stretch"),
        TransformSpec(24, None, "nearest", MEAN, STD, resize="pad", pad_value=(1, 2, 3)),
        TransformSpec(24, None, None, (0.5,), (0.5,), resize="none", channels="gray"),
        TransformSpec(None, None, None, MEAN, STD, resize="none"),
        TransformSpec(None, (24, 24), "bilinear", MEAN, STD),
    ],
)
def test_a_spec_survives_json_and_gives_equal_json(spec: TransformSpec) -> None:
    text = json.dumps(spec.to_dict())
    again = TransformSpec.from_dict(json.loads(text))
    assert again == spec
    assert hash(again) == hash(spec)
    assert json.dumps(again.to_dict()) == text
    assert spec.has_one_size == (spec.size_px is not None)


def test_two_equal_sides_are_one_number() -> None:
    spec = TransformSpec((24, 24), [27, 27], "bilinear", MEAN, STD)
    assert spec == make_spec(24, 27)
    assert (spec.height_px, spec.width_px, spec.shape) == (24, 24, (24, 24, 3))


def test_exact_turns_off_all_that_changes_pixels_and_nothing_else() -> None:
    spec = make_spec()
    assert spec.exact() == spec
    changed = TransformSpec.from_dict({**spec.to_dict(), "shrink_on_load": True})
    assert changed != spec
    assert changed.exact() == spec
    assert TransformSpec.from_dict(changed.to_dict()) == changed
