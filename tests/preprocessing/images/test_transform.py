"""The transform equals torchvision's, bit for bit, and refuses images that take too much memory."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.runs.selection import examples
from torchvision.transforms import InterpolationMode, v2

from pipeline.core.failures import Reason
from pipeline.preprocessing.images.resizing import resize_and_crop, to_bytes
from pipeline.preprocessing.images.transform import MAX_ASPECT_RATIO, TransformSpec, Untransformable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_spec(size_px: int = 24, resize_px: int = 27, interpolation: str = "bilinear"):
    return TransformSpec(size_px, resize_px, interpolation, MEAN, STD)


def make_image(height_px: int, width_px: int, seed: int = 0) -> torch.Tensor:
    """Return noise in the memory layout of decoders: channels last."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def torchvision_pixels(image: torch.Tensor, spec: TransformSpec) -> torch.Tensor:
    mode = InterpolationMode(spec.interpolation)
    resize = v2.Resize(spec.resize_px, mode, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(spec.size_px)])(image)


@examples(150)
@given(
    short_px=st.integers(1, 90),
    ratio=st.floats(1, MAX_ASPECT_RATIO),
    is_tall=st.booleans(),
    size_px=st.integers(2, 40),  # torch cannot resize some layouts to a single pixel
    margin_px=st.integers(0, 9),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    is_channels_last=st.booleans(),
)
def test_pixels_equal_torchvision(
    short_px, ratio, is_tall, size_px, margin_px, interpolation, is_channels_last
) -> None:
    long_px = int(short_px * ratio)
    image = make_image(*((long_px, short_px) if is_tall else (short_px, long_px)), seed=long_px)
    if not is_channels_last:
        image = image.contiguous()
    spec = make_spec(size_px, size_px + margin_px, interpolation)
    result = resize_and_crop(image, spec)
    assert result.shape == (3, size_px, size_px)
    assert result.dtype == torch.uint8
    assert torch.equal(result, torchvision_pixels(image, spec))


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 5000), (10000, 3), (1, 51), (102, 2)])
def test_strips_are_refused_as_too_large(height_px: int, width_px: int) -> None:
    with pytest.raises(Untransformable, match=f"{width_px} x {height_px} px") as caught:
        resize_and_crop(make_image(height_px, width_px), make_spec(224, 256))
    assert caught.value.reason == Reason.TOO_LARGE


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 50), (200, 4)])
def test_the_longest_allowed_strips_pass(height_px: int, width_px: int) -> None:
    result = resize_and_crop(make_image(height_px, width_px), make_spec(224, 256))
    assert result.shape == (3, 224, 224)


def test_an_image_is_made_no_larger_than_one_may_be() -> None:
    spec, image = make_spec(32, 300), make_image(20, 40)  # 300 x 600 px before the crop
    assert resize_and_crop(image, spec, 300 * 600).shape == (3, 32, 32)
    with pytest.raises(Untransformable, match="40 x 20 px would be resized to 180000 px") as caught:
        resize_and_crop(image, spec, 300 * 600 - 1)
    assert caught.value.reason == Reason.TOO_LARGE
    padded = TransformSpec(500, 30, "bilinear", MEAN, STD, resize="pad")
    with pytest.raises(Untransformable, match="to 250000 px, allowed are 249999"):
        resize_and_crop(image, padded, 249_999)


def test_what_torch_refuses_costs_the_row_and_not_the_run() -> None:
    image = make_image(2, 2).contiguous()
    try:
        torchvision_pixels(image, make_spec(1, 1))
    except RuntimeError:
        with pytest.raises(Untransformable, match="2 x 2 px failed"):
            resize_and_crop(image, make_spec(1, 1))
    else:
        pytest.skip("this torch resizes even to one pixel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize_px": 23}, "resize_px is 23"),
        ({"size_px": 0}, "size_px is 0"),
        ({"interpolation": "cubic"}, "bilinear, bicubic"),
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


def test_a_spec_survives_json_and_gives_equal_json() -> None:
    spec = TransformSpec(224, 256, "bicubic", (0, 0.5, 1), (1, 1, 1))
    text = json.dumps(spec.to_dict())
    again = TransformSpec.from_dict(json.loads(text))
    assert again == spec
    assert json.dumps(again.to_dict()) == text
    assert hash(again) == hash(spec)


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
        TransformSpec((24, 30), 31, "bilinear", MEAN, STD, crop_start="floor"),
        TransformSpec((24, 30), (25, 31), "lanczos", MEAN, STD, resize="stretch"),
        TransformSpec(24, None, "nearest", MEAN, STD, resize="pad", pad_value=(1, 2, 3)),
        TransformSpec(24, None, None, (0.5,), (0.5,), resize="none", channels="gray"),
        TransformSpec(None, None, None, MEAN, STD, resize="none"),
        TransformSpec(None, (24, 24), "bilinear", MEAN, STD),
    ],
)
def test_later_kinds_survive_json(spec: TransformSpec) -> None:
    assert TransformSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
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


def test_what_a_float_filter_overshoots_is_no_other_colour() -> None:
    found = to_bytes(torch.tensor([-7.3, -0.4, 0.6, 254.4, 255.7, 300.0]))
    assert found.tolist() == [0, 0, 1, 254, 255, 255]
    assert found.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_resizes_to_nearly_the_same(interpolation: str) -> None:
    image, spec = make_image(375, 500), make_spec(224, 256, interpolation)
    found = resize_and_crop(image.cuda(), spec)
    assert (found.device.type, found.dtype) == ("cuda", torch.uint8)
    difference = found.cpu().int() - resize_and_crop(image, spec).int()
    assert difference.abs().max() <= 2


def test_untransformable_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(Untransformable(Reason.TOO_LARGE, "long")))
    assert (error.reason, error.message, str(error)) == (Reason.TOO_LARGE, "long", "long")


def test_a_spec_needs_no_torch() -> None:
    code = (
        "import sys; from pipeline.preprocessing.images.transform import TransformSpec; "
        "sys.exit('torch' in sys.modules or 'torchvision' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
