"""Test that bad files get their reasons, and valid files Pillow's pixels and a thumbnail."""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.inputs.badfiles import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PX,
    BadFile,
    bad_files,
    base_image,
    encode,
    good_odd_files,
)
from support.inputs.encoded import chunk, packed_zeros

from pipeline.core.failures import Reason
from pipeline.preprocessing.images.decode_image import DecodeLimits, Undecodable, decode_image
from pipeline.preprocessing.images.geometry import shrink_factor
from pipeline.preprocessing.images.resizing import resize_and_crop
from pipeline.preprocessing.images.thumbnails import make_thumbnail
from pipeline.preprocessing.images.transform import TransformSpec

SEED = 7
LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
BAD = bad_files(SEED)
ODD = good_odd_files(SEED)
SPEC = TransformSpec(224, 256, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), shrink_on_load=True)
SMALL = replace(SPEC, size_px=56, resize_px=64)

# Pillow warns of palette transparency and of huge images; which pixels come out is the point here.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def pillow_rgb(data: bytes) -> torch.Tensor:
    """Decode with Pillow alone: the reference."""
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


def outcome_of(data: bytes, limits: DecodeLimits = LIMITS) -> torch.Tensor | Undecodable:
    try:
        return decode_image(data, limits)
    except Undecodable as error:
        return error


def reason_of(data: bytes, limits: DecodeLimits = LIMITS) -> Reason:
    with pytest.raises(Undecodable) as caught:
        decode_image(data, limits)
    return caught.value.reason


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.name)
def test_every_bad_file_gets_its_reason(bad: BadFile) -> None:
    for decode in (decode_image, partial(make_thumbnail, side_px=64, max_bytes=4000)):
        with pytest.raises(Undecodable) as caught:
            decode(bad.data, LIMITS)
        assert caught.value.reason == bad.reason, caught.value.message
        assert "\n" not in caught.value.message
        assert " at 0x" not in caught.value.message


@pytest.mark.parametrize(("name", "data"), ODD, ids=[name for name, _ in ODD])
def test_every_odd_file_has_the_pixels_of_pillow(name: str, data: bytes) -> None:
    decoded = decode_image(data, LIMITS)
    assert decoded.dtype == torch.uint8
    assert decoded.permute(1, 2, 0).is_contiguous()
    if name == "grey_16_bit.png":  # where Pillow clips and we do not
        red = torch.from_numpy(np.array(base_image(SEED)))[:, :, 0]
        assert torch.equal(decoded, red.expand(3, -1, -1))
    else:
        assert torch.equal(decoded, pillow_rgb(data))
    made = make_thumbnail(data, LIMITS, side_px=40, max_bytes=4000)
    assert (made.height_px, made.width_px) == decoded.shape[1:]
    small = Image.open(io.BytesIO(made.jpeg))
    assert max(small.size) <= 40
    wanted = Image.fromarray(decoded.permute(1, 2, 0).numpy()).resize(small.size)
    difference = np.asarray(small, np.float32) - np.asarray(wanted, np.float32)
    assert np.abs(difference).mean() < 12


@pytest.mark.parametrize("head", [b"zTXta\0\0", b"iTXta\0\1\0\0\0"])
def test_a_text_beside_the_pixels_of_a_png_may_be_long(head: bytes):
    plain = encode(base_image(SEED), "PNG")
    data = plain[:33] + chunk(head[:4], head[4:] + packed_zeros(8_000_000)) + plain[33:]
    assert torch.equal(decode_image(data, LIMITS), decode_image(plain, LIMITS))
    made, wanted = (make_thumbnail(d, LIMITS, side_px=40, max_bytes=4000) for d in (data, plain))
    assert made == wanted


def test_thumbnails_keep_their_limit():
    noise = np.random.default_rng(1).integers(0, 255, (300, 200, 3), np.uint8)
    for image in (Image.fromarray(noise), base_image(1, 400, 300)):
        made = make_thumbnail(encode(image, "PNG"), LIMITS, side_px=176, max_bytes=6000)
        assert len(made.jpeg) <= 6000


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0", "4:1:1"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_routes_agree_bit_for_bit(mode: str, subsampling: str, progressive: bool) -> None:
    for width_px, height_px in [(64, 48), (63, 47), (1, 9), (17, 1), (200, 131)]:
        image = base_image(SEED, width_px, height_px).convert(mode)
        for quality in (10, 75, 100):
            data = encode(
                image, "JPEG", quality=quality, subsampling=subsampling, progressive=progressive
            )
            assert torch.equal(decode_image(data, LIMITS), pillow_rgb(data)), (
                width_px,
                height_px,
                quality,
            )


@pytest.mark.parametrize(
    ("format_name", "options"),
    [
        ("JPEG", {"quality": 80}),
        ("JPEG", {"quality": 80, "progressive": True}),
        ("PNG", {}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("BMP", {}),
        ("TIFF", {}),
        *(("TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg")),
        ("AVIF", {}),
        ("HEIF", {}),
    ],
)
def test_a_cut_at_any_byte_is_refused_or_changes_no_pixel(
    format_name: str, options: dict[str, object]
) -> None:
    if format_name == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()  # to encode
    data = encode(base_image(SEED, 40, 30), format_name, **options)
    whole = decode_image(data, LIMITS)
    for kept in range(33, len(data), 11 if format_name in ("AVIF", "HEIF") else 1):
        outcome = outcome_of(data[:kept])
        if isinstance(outcome, torch.Tensor):  # only bytes after the last pixel were missing
            assert format_name in ("GIF", "BMP", "PNG", "TIFF")
            assert format_name == "TIFF" or kept > len(data) - 12
            assert torch.equal(outcome, whole), kept
        elif format_name == "GIF" and data[kept - 1 : kept] == b";":  # by chance an end marker
            assert outcome.reason in (Reason.TRUNCATED, Reason.DECODE_ERROR)
        else:
            assert outcome.reason == Reason.TRUNCATED, (kept, outcome.message)
            if kept % 50 == 0:
                with pytest.raises(Undecodable):
                    make_thumbnail(data[:kept], LIMITS, side_px=20, max_bytes=4000)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_a_tail_of_zeros_never_becomes_pixels(format_name: str) -> None:
    data = encode(base_image(SEED, 40, 30), format_name)
    whole = decode_image(data, LIMITS)
    for kept in range(30, len(data)):
        outcome = outcome_of(data[:kept] + bytes(len(data) - kept))
        if isinstance(outcome, torch.Tensor):  # the checksum of the empty last chunk
            assert format_name == "PNG"
            assert kept >= len(data) - 4
            assert torch.equal(outcome, whole), kept


def test_corrupt_entropy_data_is_judged_as_pillow_judges_it() -> None:
    rng = np.random.default_rng(SEED)
    whole = encode(base_image(SEED), "JPEG", quality=90)
    start = whole.index(b"\xff\xda") + 14
    for _ in range(200):
        data = bytearray(whole)
        for position in rng.integers(start, len(data) - 2, 3):
            data[position] = rng.integers(0, 256)
        try:
            expected = pillow_rgb(bytes(data))
        except (OSError, SyntaxError):
            assert reason_of(bytes(data)) in (Reason.TRUNCATED, Reason.DECODE_ERROR)
        else:
            assert torch.equal(decode_image(bytes(data), LIMITS), expected)


def test_the_pixel_limit_is_inclusive_and_ours() -> None:
    data = encode(base_image(SEED, 40, 30), "PNG")
    assert decode_image(data, DecodeLimits(MAX_IMAGE_BYTES, 1200)).shape == (3, 30, 40)
    assert reason_of(data, DecodeLimits(MAX_IMAGE_BYTES, 1199)) == Reason.TOO_LARGE


def test_the_byte_limit_is_inclusive() -> None:
    data = encode(base_image(SEED), "PNG")
    assert decode_image(data, DecodeLimits(len(data), MAX_IMAGE_PX)).shape == (3, 61, 83)
    assert reason_of(data, DecodeLimits(len(data) - 1, MAX_IMAGE_PX)) == Reason.TOO_LARGE


def test_a_higher_limit_of_ours_does_not_disarm_the_guard_of_pillow() -> None:
    bomb = next(bad for bad in BAD if bad.name == "bomb.png")
    before = Image.MAX_IMAGE_PIXELS
    assert reason_of(bomb.data, DecodeLimits(MAX_IMAGE_BYTES, 10**12)) == Reason.TOO_LARGE
    assert before == Image.MAX_IMAGE_PIXELS


def test_unreadable_exif_leaves_the_image_as_it_is_stored() -> None:
    image = base_image(SEED)
    data = encode(image, "JPEG", dpi=(72, 72), exif=b"Exif\0\0no TIFF header here")
    with pytest.raises(SyntaxError):
        pillow_rgb(data)
    assert torch.equal(decode_image(data, LIMITS), pillow_rgb(encode(image, "JPEG")))


def test_memory_that_runs_out_is_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(self: Image.Image, mode: str) -> Image.Image:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", exhausted)
    data = encode(base_image(SEED), "BMP")
    assert reason_of(data) == Reason.OUT_OF_MEMORY


def test_decoding_warns_of_nothing_for_an_ordinary_jpeg() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoded = decode_image(encode(base_image(SEED), "JPEG"), LIMITS)
    assert decoded.shape == (3, *base_image(SEED).size[::-1])


def test_undecodable_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(Undecodable(Reason.TRUNCATED, "cut")))
    assert (error.reason, error.message, str(error)) == (Reason.TRUNCATED, "cut", "cut")
    assert error.args == (Reason.TRUNCATED, "cut")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_the_decoder_shrinks_large_jpegs_and_the_result_looks_the_same(mode: str, orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    large = base_image(5, 400, 300).convert(mode)
    data = encode(large, "JPEG", quality=90, exif=exif)
    whole = decode_image(data, DecodeLimits(2**30, 10**9))
    shrunk = decode_image(data, DecodeLimits(2**30, 10**9), partial(shrink_factor, SMALL))
    if mode == "CMYK":
        assert torch.equal(shrunk, whole), "Pillow would shrink it to other colours"
        return
    assert shrunk.shape == (3, whole.shape[1] // 2, whole.shape[2] // 2)
    difference = resize_and_crop(whole, SMALL).int() - resize_and_crop(shrunk, SMALL).int()
    assert difference.abs().float().mean() < 1.5
