"""Test that TIFF, AVIF and HEIC give the right pixels or a reason, within a memory limit."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from support.inputs.badfiles import _exif
from support.inputs.encoded import base_image, encode, png_strip, tiff

from pipeline.core.failures import Reason
from pipeline.core.media import media_format
from pipeline.preprocessing.images import image_checks
from pipeline.preprocessing.images.decode_image import DecodeLimits, Undecodable, decode_image

# Pillow warns of truncated files; the tests check the reason.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
heif = pytest.importorskip("pillow_heif")
heif.register_heif_opener()  # to encode
SEED = 7
LIMITS = DecodeLimits(64 * 2**20, 100_000_000)
MAX_MIB = 64
"""Memory limit of a refused file."""


def pixels_of(data: bytes) -> torch.Tensor:
    return decode_image(data, LIMITS)


def refused(data: bytes) -> tuple[Reason, str]:
    with pytest.raises(Undecodable) as caught:
        decode_image(data, LIMITS)
    assert "\n" not in caught.value.message
    return caught.value.reason, caught.value.message


def pillow_rgb(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)


def see_through() -> Image.Image:
    image = base_image(SEED).convert("RGBA")
    image.putalpha(image.convert("L"))
    return image


def ten_bits() -> bytes:
    wide = heif.from_pillow(Image.fromarray(np.full((40, 50), 40_000, np.uint16)))
    buffer = io.BytesIO()
    wide.save(buffer, quality=-1)
    return buffer.getvalue()


def two_pictures() -> bytes:
    image = base_image(SEED)
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return encode(image, "HEIF", save_all=True, append_images=[mirrored])


def turned_png(orientation: int) -> bytes:
    return encode(base_image(SEED), "PNG", exif=_exif(orientation))


def turned(orientation: int) -> bytes:
    return encode(Image.open(io.BytesIO(turned_png(orientation))), "HEIF")  # as boxes, not as EXIF


def plain() -> bytes:
    return encode(base_image(SEED), "HEIF")


HEICS: dict[str, Callable[[], bytes]] = {
    "plain": plain,
    "grey": lambda: encode(base_image(SEED).convert("L"), "HEIF"),
    "alpha": lambda: encode(see_through(), "HEIF"),
    "two_pictures": two_pictures,
    "ten_bits": ten_bits,
    **{f"exif_{orientation}": partial(turned, orientation) for orientation in range(2, 9)},
}


@pytest.mark.parametrize("name", HEICS)
def test_a_heic_has_the_pixels_of_its_plugin(name: str):
    data = HEICS[name]()
    pixels = pixels_of(data)
    if name != "ten_bits":  # where Pillow clips and we do not
        assert torch.equal(pixels, pillow_rgb(data))
    if name.startswith("exif_"):
        upright = ImageOps.exif_transpose(Image.open(io.BytesIO(turned_png(int(name[-1])))))
        wanted = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
        assert pixels.shape == wanted.shape
        assert (pixels.int() - wanted.int()).abs().float().mean() < 15  # lossy, and not turned
    if name == "ten_bits":
        assert (pixels.int() - 40_000 // 256).abs().max() <= 2


def test_without_the_extra_a_heic_is_unsupported_and_the_message_names_the_extra(
    monkeypatch: pytest.MonkeyPatch,
):
    data = plain()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_checks._load_decoder.cache_clear()
    try:
        reason, message = refused(data)
    finally:
        image_checks._load_decoder.cache_clear()
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "pip install 'batch-inference-pipeline[heif]'" in message


def test_avif_wins_over_heic_whatever_brand_comes_first():
    for name, data in {"HEIC": plain(), "AVIF": encode(base_image(SEED), "AVIF")}.items():
        for brands in (data, data[:8] + b"mif1" + data[12:]):
            row = media_format("image", brands)
            assert row is not None
            assert row.name == name


# Grey TIFFs of more than eight bits


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_16_bit_grey_tiff_keeps_the_high_byte(order: str):
    grey = np.arange(0, 65_536, 1024, np.uint16).reshape(8, 8)
    data = tiff(grey.astype(f"{order}u2").tobytes(), order, t256=8, t257=8, t258=16)
    assert torch.equal(pixels_of(data)[1], torch.from_numpy((grey >> 8).astype(np.uint8)))


def test_a_16_bit_tiff_whose_white_is_zero_is_turned_round():
    grey = np.arange(0, 65_536, 1024, np.uint16).reshape(8, 8)
    data = tiff(grey.tobytes(), t256=8, t257=8, t258=16, t262=0)
    assert torch.equal(pixels_of(data)[2], torch.from_numpy(255 - (grey >> 8).astype(np.uint8)))
    eight = tiff(bytes(range(64)), t256=8, t257=8, t262=0)
    assert pixels_of(eight)[0].flatten().tolist() == [255 - value for value in range(64)]


def test_a_12_bit_grey_tiff_uses_all_its_bits():
    values = [0, 0x7FF, 0x800, 0xFFF]
    packed = b"".join(
        (first << 12 | second).to_bytes(3, "big")
        for first, second in zip(values[::2], values[1::2], strict=True)
    )
    data = tiff(packed, t256=4, t257=1, t258=12)
    assert pixels_of(data)[0].flatten().tolist() == [0, 127, 128, 255]


@pytest.mark.parametrize(("dtype", "sample_format"), [("<f4", 3), ("<i4", 2), ("<i2", 2)])
def test_a_tiff_without_a_known_white_is_refused(dtype: str, sample_format: int):
    grey = np.zeros((8, 8), dtype)
    bits = grey.itemsize * 8
    data = tiff(grey.tobytes(), t256=8, t257=8, t258=bits, t339=sample_format)
    reason, message = refused(data)
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert "8 or 16 bits" in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"t254": 1}, "a smaller copy"),
        ({"t50706": 0x01040000}, "camera raw"),
        ({"t262": 32803}, "camera raw"),
    ],
)
def test_a_tiff_whose_first_page_is_not_the_photo_is_refused(
    changes: dict[str, int], expected: str
):
    reason, message = refused(tiff(bytes(64), t256=8, t257=8, **changes))
    assert reason == Reason.UNSUPPORTED_FORMAT
    assert expected in message


def test_tiles_are_put_together():
    image = np.arange(40 * 24, dtype=np.uint16).reshape(24, 40).astype(np.uint8)
    padded = np.pad(image, ((0, 8), (0, 8)))
    tiles = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16) for x in (0, 16, 32)]
    data = tiff(
        b"".join(tiles), t256=40, t257=24, t322=16, t323=16,
        t324=tuple(8 + 256 * index for index in range(6)), t325=(256,) * 6,
    )  # fmt: skip
    assert torch.equal(pixels_of(data)[0], torch.from_numpy(image))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"t273": 9}, Reason.TRUNCATED),
        ({"t279": 0}, Reason.DECODE_ERROR),
        ({"t278": 4}, Reason.DECODE_ERROR),
        ({"t256": 0}, Reason.DECODE_ERROR),
        ({"t277": 70_000}, Reason.DECODE_ERROR),
        ({"t258": 7}, Reason.DECODE_ERROR),
        ({"t324": 8, "t325": 64, "t322": 8, "t323": 8, "t273": 8}, Reason.DECODE_ERROR),
    ],
    ids=str,
)
def test_a_tiff_that_contradicts_itself_is_refused(changes: dict[str, int], reason: Reason):
    whole = tiff(bytes(64), t256=8, t257=8)
    if changes == {"t273": 9}:  # pixels that continue beyond the end
        changes = {"t273": len(whole) - 40}
    assert refused(tiff(bytes(64), **{"t256": 8, "t257": 8, **changes}))[0] == reason


# Damaged


def test_damaged_files_raise_nothing_but_undecodable():
    rng = np.random.default_rng(SEED)
    files = [encode(base_image(SEED), name) for name in ("AVIF", "HEIF", "TIFF")]
    files.append(encode(base_image(SEED), "TIFF", compression="tiff_lzw"))
    for whole in files:
        for _ in range(15):
            data = bytearray(whole)
            for position in rng.integers(0, min(len(data), 600), 3):
                data[position] = rng.integers(0, 256)
            with contextlib.suppress(Undecodable):
                assert decode_image(bytes(data), DecodeLimits(2**20, 100_000)).shape[0] == 3


# Memory


def says(data: bytes, width_px: int, height_px: int) -> bytes:
    """Write another size into the box of the image size."""
    at = data.index(b"ispe") + 8
    size = width_px.to_bytes(4, "big") + height_px.to_bytes(4, "big")
    return data[:at] + size + data[at + 8 :]


def bombs() -> dict[str, bytes]:
    avif, heic = (encode(base_image(SEED), name) for name in ("AVIF", "HEIF"))
    large = encode(Image.new("RGB", (1200, 800)), "HEIF")
    zeros = bytes(1000)
    return {
        "bomb.png": png_strip(30_000, 30_000),
        "long.png": png_strip(1, 100_000_000),
        "wide.png": png_strip(100_000_000, 1),
        "long.tif": tiff(zeros, t256=1, t257=100_000_000),
        "huge.tif": tiff(zeros, t256=60_000, t257=60_000),
        "tiles.tif": tiff(
            zeros, t256=9, t257=9, t259=8, t322=50_000, t323=50_000, t324=8, t325=1000
        ),
        "strips.tif": tiff(zeros, t256=9, t257=9, t273=(8,) * 1_000_000, t279=(9,) * 1_000_000),
        "tags.tif": tiff(zeros, t256=9, t257=9, t65000=(9,) * 1_000_000),
        "huge.avif": says(avif, 16_000, 16_000),
        "long.avif": says(avif, 1, 30_000),
        "huge.heic": says(heic, 16_000, 16_000),
        "other.heic": says(heic, 9_000, 9_000),
        "small.heic": says(large, 8, 8),
    }


PROGRAM = """
import json, pathlib, resource, sys, warnings
from pipeline.preprocessing.images.decode_image import DecodeLimits, Undecodable, decode_image
from pipeline.preprocessing.images.image_checks import prepare_decoder
warnings.simplefilter("ignore")
for kind in ("TIFF", "AVIF", "HEIF"):
    prepare_decoder(kind)
found = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    data = path.read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decode_image(data, DecodeLimits(64 * 2**20, 100_000_000))
        reason = "decoded"
    except Undecodable as error:
        reason = str(error.reason)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found[path.name] = (reason, (after - before) / 1024)
print(json.dumps(found))
"""


def test_what_says_that_it_is_huge_is_refused_before_memory_is_taken(tmp_path: Path):
    files = bombs()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    refusals = json.loads(done.stdout)
    for name, (reason, grown_mib) in refusals.items():
        allowed_mib = MAX_MIB + 4 * len(files[name]) / 2**20
        assert grown_mib < allowed_mib, (name, reason, grown_mib)
    wanted = dict.fromkeys(files, "too_large")
    damaged = ("strips.tif", "huge.heic", "other.heic", "small.heic")
    wanted |= {**dict.fromkeys(damaged, "decode_error"), "tags.tif": "decoded"}
    assert {name: reason for name, (reason, _) in refusals.items()} == wanted
