"""Test that every resize gives torchvision's pixels bit for bit, and lanczos Pillow's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.runs.selection import examples
from torchvision.transforms import InterpolationMode, v2

from pipeline.core.failures import Reason
from pipeline.preprocessing.images.geometry import geometry, placement
from pipeline.preprocessing.images.resizing import resize_and_crop, to_bytes, to_gray
from pipeline.preprocessing.images.transform import TransformSpec, Untransformable

FILTERS = ("nearest", "nearest-exact", "bilinear", "bilinear-plain", "bicubic")
SIZES_PX = [(275, 300), (401, 267), (61, 61), (33, 517), (90, 41), (3, 100), (5, 5)]
"""(height, width) of images."""
MODEL_PX = [24, (32, 48), (61, 25)]


def make_image(height_px: int, width_px: int) -> torch.Tensor:
    """Return noise in the memory layout of decoders: channels last."""
    rng = np.random.default_rng(height_px * 10_000 + width_px)
    pixels = rng.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


IMAGES = [make_image(*px) for px in SIZES_PX]
IMAGES += [IMAGES[0].contiguous(), make_image(1, 50), make_image(200, 4)]
"""The last two are as long as an image may be that is resized by its shorter side."""


def make_spec(size, resize: str = "stretch", interpolation: str | None = "bilinear", **more):
    fields = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize_px": None, **more}
    return TransformSpec(size, interpolation=interpolation, resize=resize, **fields)


COLOUR = (9, 80, 200)


def by_torchvision(image: torch.Tensor, spec: TransformSpec) -> torch.Tensor:
    """Resize and crop by torchvision; what is around the image has COLOUR."""
    size, target = (spec.height_px, spec.width_px), spec.resize_px
    if spec.resize == "stretch":
        target = size
    elif spec.resize == "pad":
        ratio = min(side / px for side, px in zip(size, image.shape[1:], strict=True))
        target = [max(1, round(px * ratio)) for px in image.shape[1:]]
        assert {*size} & {*target}
    if spec.resize != "none":
        name, plain, _ = str(spec.interpolation).partition("-plain")
        image = v2.Resize(target, InterpolationMode(name), antialias=not plain)(image)
    crop, colour = v2.CenterCrop(size), torch.tensor(COLOUR, dtype=torch.uint8)[:, None, None]
    is_inside = crop(torch.ones(1, *image.shape[1:], dtype=torch.uint8)).bool()
    return torch.where(is_inside, crop(image), colour)


@pytest.mark.parametrize(
    ("resize", "size"),
    [
        *itertools.product(["stretch", "shortest", "pad", "none"], MODEL_PX),
        *(("none", 600), ("none", (7, 1000))),
    ],
)
def test_pixels_equal_torchvision(resize: str, size):
    resize_px = max(size) if isinstance(size, tuple) else size + 3
    for interpolation in FILTERS if resize != "none" else [None]:
        more = {"resize_px": resize_px} if resize == "shortest" else {}
        more |= {"pad_value": COLOUR} if resize in ("pad", "none") else {}
        spec = make_spec(size, resize, interpolation, **more)
        for image in IMAGES if resize == "shortest" else IMAGES[:-2]:
            actual, wanted = resize_and_crop(image, spec), by_torchvision(image, spec)
            assert torch.equal(actual, wanted), (interpolation, image.shape)


@pytest.mark.parametrize("resize", ["stretch", "pad", "shortest"])
@pytest.mark.parametrize("channels", ["rgb", "gray"])
def test_lanczos_equals_pillow(resize: str, channels: str):
    more = {} if channels == "rgb" else {"mean": (0.5,), "std": (0.5,), "channels": "gray"}
    spec = make_spec(24, resize, "lanczos", resize_px=28, **more)
    for height_px, width_px in SIZES_PX:
        image = make_image(height_px, width_px)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        if channels == "gray":
            picture = picture.convert("L")
        at = placement(spec, width_px, height_px)
        picture = picture.resize((at.width_px, at.height_px), Image.Resampling.LANCZOS)
        canvas = Image.new(picture.mode, (24, 24))
        canvas.paste(picture, (at.left_px, at.top_px))
        expected = np.array(canvas).reshape(spec.shape)
        assert np.array_equal(resize_and_crop(image, spec).permute(1, 2, 0).numpy(), expected)


def test_gray_is_that_of_pillow_and_keeps_gray_as_it_is():
    image = make_image(300, 301)
    expected = np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
    assert np.array_equal(to_gray(image)[0].numpy(), expected)
    planes = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    assert torch.equal(to_gray(planes), planes[:1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_gray_on_a_gpu_is_the_same():
    assert torch.equal(to_gray(make_image(99, 98).cuda()).cpu(), to_gray(make_image(99, 98)))


@pytest.mark.parametrize("resize", ["shortest", "stretch", "pad", "none"])
def test_gray_is_resized_as_one_channel(resize: str):
    fields = {"mean": (0.5,), "std": (0.5,), "channels": "gray"}
    fields["resize_px"] = 30 if resize == "shortest" else None
    spec = make_spec((24, 30), resize, None if resize == "none" else "bicubic", **fields)
    for px in SIZES_PX:
        pixels = resize_and_crop(make_image(*px), spec)
        assert pixels.shape == (1, 24, 30)
        gray = to_gray(make_image(*px)).repeat(3, 1, 1)
        rgb = make_spec((24, 30), resize, spec.interpolation, resize_px=spec.resize_px)
        assert torch.equal(pixels, resize_and_crop(gray, rgb)[:1])


@examples(100)
@given(
    width_px=st.integers(8, 300),
    height_px=st.integers(8, 300),
    resize=st.sampled_from(["shortest", "stretch", "pad", "none"]),
    size=st.tuples(st.integers(2, 40), st.integers(2, 40)),
    crop_start=st.sampled_from(["round", "floor"]),
)
def test_geometry_says_where_a_part_of_the_image_is(width_px, height_px, resize, size, crop_start):
    fields = {"resize_px": max(size) if resize == "shortest" else None, "crop_start": crop_start}
    spec = make_spec(size, resize, None if resize == "none" else "nearest-exact", **fields)
    at = geometry(spec, width_px, height_px)
    # An image whose red is the column and whose green is the row, in 1/300 of 255.
    y, x = np.mgrid[0:height_px, 0:width_px]
    image = torch.from_numpy(np.stack([x % 256, y % 256, 0 * x + 7]).astype(np.uint8))
    pixels = resize_and_crop(image, spec).int()
    for row in range(spec.height_px):
        for column in (0, spec.width_px // 2, spec.width_px - 1):
            red, green, blue = pixels[:, row, column].tolist()
            # The middle of this pixel, in the original image.
            from_x = (column + 0.5 - at.offset_x) / at.scale_x
            from_y = (row + 0.5 - at.offset_y) / at.scale_y
            is_inside = 0 <= from_x < width_px and 0 <= from_y < height_px
            assert (blue == 7) == is_inside
            if is_inside:
                assert abs(red - int(from_x) % 256) in (0, 1, 255)
                assert abs(green - int(from_y) % 256) in (0, 1, 255)


def test_a_target_of_the_resize_beside_the_size_is_cropped():
    image = make_image(100, 70)
    for resize, expected in (("stretch", (30, 40)), ("pad", (30, 21)), ("shortest", (57, 40))):
        spec = make_spec((24, 32), resize, resize_px=(30, 40))
        at = placement(spec, 70, 100)
        assert (at.height_px, at.width_px) == expected
        mode = InterpolationMode.BILINEAR
        whole = v2.Resize(expected, mode, antialias=True)(image)
        assert torch.equal(resize_and_crop(image, spec), v2.CenterCrop((24, 32))(whole))


SHORTEST = TransformSpec(224, 256, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(("height_px", "width_px"), [(1, 5000), (10000, 3), (1, 51), (102, 2)])
def test_strips_are_refused_as_too_large(height_px: int, width_px: int) -> None:
    with pytest.raises(Untransformable, match=f"{width_px} x {height_px} px") as caught:
        resize_and_crop(make_image(height_px, width_px), SHORTEST)
    assert caught.value.reason == Reason.TOO_LARGE


def test_an_image_is_made_no_larger_than_one_may_be() -> None:
    # 300 x 600 px before the crop.
    spec, image = make_spec(32, "shortest", resize_px=300), make_image(20, 40)
    assert resize_and_crop(image, spec, 300 * 600).shape == (3, 32, 32)
    with pytest.raises(Untransformable, match="40 x 20 px would be resized to 180000 px") as caught:
        resize_and_crop(image, spec, 300 * 600 - 1)
    assert caught.value.reason == Reason.TOO_LARGE
    padded = make_spec(500, "pad", resize_px=30)
    with pytest.raises(Untransformable, match="to 250000 px, allowed are 249999"):
        resize_and_crop(image, padded, 249_999)


def test_what_torch_refuses_costs_the_row_and_not_the_run() -> None:
    image = make_image(2, 2).contiguous()
    spec = make_spec(1, "shortest", resize_px=1)
    try:
        by_torchvision(image, spec)
    except RuntimeError:
        with pytest.raises(Untransformable, match="2 x 2 px failed"):
            resize_and_crop(image, spec)
    else:
        pytest.skip("this torch resizes even to one pixel")


def test_what_a_float_filter_overshoots_is_no_other_colour() -> None:
    rounded = to_bytes(torch.tensor([-7.3, -0.4, 0.6, 254.4, 255.7, 300.0]))
    assert rounded.tolist() == [0, 0, 1, 254, 255, 255]
    assert rounded.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_gpu_resizes_to_nearly_the_same(interpolation: str) -> None:
    image, spec = make_image(375, 500), make_spec(224, "shortest", interpolation, resize_px=256)
    pixels = resize_and_crop(image.cuda(), spec)
    assert (pixels.device.type, pixels.dtype) == ("cuda", torch.uint8)
    difference = pixels.cpu().int() - resize_and_crop(image, spec).int()
    assert difference.abs().max() <= 2
