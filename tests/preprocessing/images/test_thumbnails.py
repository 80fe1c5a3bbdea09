"""A thumbnail shows what a run sees, and is refused what a run refuses."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image
from support.inputs.badfiles import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PX,
    BadFile,
    bad_files,
    base_image,
    encode,
    good_odd_files,
)

from pipeline.preprocessing.images.decode import decode_image
from pipeline.preprocessing.images.image_checks import DecodeLimits
from pipeline.preprocessing.images.image_formats import Undecodable
from pipeline.preprocessing.images.thumbnails import make_thumbnail

LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
BAD, ODD = bad_files(7), good_odd_files(7)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_what_a_run_refuses_has_no_thumbnail(bad: BadFile):
    with pytest.raises(Undecodable) as caught:
        make_thumbnail(bad.data, LIMITS, 64, 4000)
    assert caught.value.reason == bad.reason


@pytest.mark.parametrize(("name", "data"), ODD, ids=[name for name, _ in ODD])
def test_a_thumbnail_is_the_image_upright_and_small(name: str, data: bytes):
    seen = decode_image(data, LIMITS).permute(1, 2, 0).numpy()
    made = make_thumbnail(data, LIMITS, 40, 4000)
    assert (made.height_px, made.width_px) == seen.shape[:2]
    small = Image.open(io.BytesIO(made.jpeg))
    assert max(small.size) <= 40
    wanted = np.asarray(Image.fromarray(seen).resize(small.size), np.float32)
    assert np.abs(np.asarray(small, np.float32) - wanted).mean() < 12, name


def test_no_thumbnail_is_beyond_its_limit():
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 255, (300, 200, 3), np.uint8))
    for image in (noise, base_image(1, 400, 300)):
        made = make_thumbnail(encode(image, "PNG"), DecodeLimits(2**30, 10**9), 176, 6000)
        assert len(made.jpeg) <= 6000
