"""Test the published size of an image: upright, and before any resize or shrinking."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.inputs.badfiles import base_image, encode

from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.schema import GEOMETRY, HEIGHT_PX, WIDTH_PX
from pipeline.preprocessing.images.decode_image import DecodeLimits
from pipeline.preprocessing.images.geometry import (
    geometry,
    least_made_px,
    made_px,
    shrink_factor,
)
from pipeline.preprocessing.images.image_rows import preprocess
from pipeline.preprocessing.images.transform import TransformSpec

LIMITS = DecodeLimits(2**30, 10**9)
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
SPEC = TransformSpec(24, 28, "bilinear", **HALF)
STRETCH = TransformSpec((100, 200), None, "bilinear", **HALF, resize="stretch")
PAD = TransformSpec(100, None, "bilinear", **HALF, resize="pad")
NONE = TransformSpec(100, None, None, **HALF, resize="none")


def prepared(images: list[bytes | None], spec: TransformSpec) -> pa.Table:
    failures = [
        None if image is not None else Failure(Reason.NULL_INPUT, "read", "null")
        for image in images
    ]
    columns = {"image": pa.array(images, pa.large_binary()), **failure_columns(failures)}
    return preprocess(pa.table(columns), {}, LIMITS, spec)


def photo(width_px: int, height_px: int, orientation: int = 1, format_name: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = base_image(3).resize((width_px, height_px))
    return encode(image, format_name, **({"exif": exif} if format_name == "JPEG" else {}))


@pytest.mark.parametrize(
    ("spec", "least"),
    [
        (SPEC, 28 * 28),
        (TransformSpec(20, (40, 100), "bilinear", **HALF), 40 * 100),
        (TransformSpec(None, (50, 200), "bilinear", **HALF), 200 * 4),
        (STRETCH, 100 * 200),
        (PAD, 100 * 100),
        (NONE, 100 * 100),
        (TransformSpec(None, None, None, **HALF, resize="none"), 1),
    ],
)
def test_no_shape_of_an_image_is_made_smaller_than_the_least(spec: TransformSpec, least: int):
    assert least_made_px(spec) == least
    shapes = [(width, height) for width in (8, 20, 57, 400) for height in (8, 23, 60, 400)]
    assert all(made_px(spec, *shape) >= least for shape in shapes)


def test_sizes_are_those_of_the_upright_image_and_null_if_it_cannot_be_decoded():
    images = [photo(120, 80), photo(120, 80, 6), photo(50, 70, format_name="PNG"), b"none", None]
    rows = prepared(images, SPEC)
    assert rows.column(WIDTH_PX).to_pylist() == [120, 80, 50, None, None]
    assert rows.column(HEIGHT_PX).to_pylist() == [80, 120, 70, None, None]
    assert rows.schema.field(WIDTH_PX).type == rows.schema.field(HEIGHT_PX).type == pa.int32()
    assert rows.schema.field(GEOMETRY).type == pa.list_(pa.float32(), 4)
    places = rows.column(GEOMETRY).to_pylist()
    assert places[3:] == [None, None]
    for row, (width_px, height_px) in enumerate([(120, 80), (80, 120), (50, 70)]):
        assert places[row] == pytest.approx(geometry(SPEC, width_px, height_px), rel=1e-6)
    assert rows.take(pa.array([1, None], pa.int64())).column(GEOMETRY).null_count == 1


def test_an_image_that_only_the_transform_refuses_has_a_size():
    limits = TransformSpec(1, 1, "bilinear", **HALF)
    rows = prepared([photo(2, 2, format_name="PNG")], limits)
    assert rows.column(WIDTH_PX).to_pylist() == [2]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", ["shortest", "stretch", "pad"])
def test_a_photo_that_the_decoder_shrinks_keeps_its_size(orientation: int, resize: str):
    resize_px = 30 if resize == "shortest" else None
    more = {**HALF, "shrink_on_load": True, "resize": resize}
    spec = TransformSpec((24, 30), resize_px, "bilinear", **more)
    shrunk, whole = (
        prepared([photo(801, 603, orientation)], transform) for transform in (spec, spec.exact())
    )
    sizes = [603, 801] if orientation == 6 else [801, 603]
    for rows in (shrunk, whole):
        assert [rows.column(name)[0].as_py() for name in (WIDTH_PX, HEIGHT_PX)] == sizes
    places = [np.array(rows.column(GEOMETRY)[0].as_py()) for rows in (shrunk, whole)]
    # A pixel at most at the far edge: the decoder rounds its sizes up.
    assert np.abs(places[0][:2] * sizes - places[1][:2] * sizes).max() <= 1
    assert not shrunk.column("image").equals(whole.column("image"))


def test_a_decoder_shrinks_as_far_as_twice_the_resized_size_is_left():
    assert [shrink_factor(SPEC, side, 900) for side in (55, 111, 112, 223, 224, 448)] == [
        1, 1, 2, 2, 4, 8,
    ]  # fmt: skip
    assert [shrink_factor(STRETCH, side, 9000) for side in (799, 800, 1600)] == [1, 2, 4]
    assert [shrink_factor(STRETCH, 9000, side) for side in (399, 400)] == [1, 2]
    assert [shrink_factor(PAD, side, 90) for side in (399, 400, 1600)] == [1, 2, 8]
    assert shrink_factor(NONE, 9000, 9000) == 1
