"""JPEGs decoded in groups have the pixels and the reasons that they have alone.

The decoder of a group is libjpeg wherever there is no GPU, so that pixels can be held to be equal.
"""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.inputs.badfiles import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PX,
    bad_files,
    base_image,
    encode,
    good_odd_files,
    mutations,
)

from pipeline.core.arrays import images_from_arrow
from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.figures.counters import Counters
from pipeline.preprocessing.images.decode import (
    RGB,
    DecodeLimits,
    decode_image,
    load_image_ops,
    plain_jpeg_px,
)
from pipeline.preprocessing.images.geometry import Sizes
from pipeline.preprocessing.images.images import preprocess
from pipeline.preprocessing.images.jpeg.gpu_trust import FIRST_ROWS, ONE_IN, Trust
from pipeline.preprocessing.images.jpeg.jpeg_headers import plain_header
from pipeline.preprocessing.images.jpeg.nvjpeg import (
    MAX_GROUP_PX,
    MAX_GROUP_ROWS,
    JpegGroups,
    _Made,
    decode_group,
    gpu_decoder,
    group,
)
from pipeline.preprocessing.images.transform import TransformSpec

LIMITS = DecodeLimits(MAX_IMAGE_BYTES, MAX_IMAGE_PX)
SPEC = TransformSpec(24, 28, "bilinear", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
GOOD = [encode(base_image(seed), "JPEG") for seed in range(5)]
STRIP = encode(base_image(0, 4, 400), "JPEG")
BAD = {file.name: file for file in bad_files(0)}
ODD = dict(good_odd_files(0))
PLAIN = {
    *("progressive.jpg", "restarts.jpg", "two_pictures.jpg", "trailing_bytes.jpg"),
    *("one_px.jpg", "exif_1.jpg"),
}

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


class Libjpeg:
    """Decodes a group on the CPU, notes its size, and fails as a whole, as nvJPEG does."""

    def __init__(self, refused: bytes | None = None) -> None:
        self.sizes: list[int] = []
        self.refused = refused

    def __call__(self, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        load_image_ops()
        self.sizes.append(len(encoded))
        if any(data.numpy().tobytes() == self.refused for data in encoded):
            raise RuntimeError("an image that this decoder does not take")
        return [torch.ops.image.decode_jpeg(data, RGB) for data in encoded]


def rows_of(images: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "row_id": [f"r{index}" for index in range(len(images))],
            "image": pa.array(images, pa.large_binary()),
            **failure_columns([None] * len(images)),
        }
    )


def both_routes(images: list[bytes], decoder: Libjpeg) -> pa.Table:
    """Decode a slice in groups; check that the result is that of the CPU."""
    alone: Counters = {}
    together: Counters = {}
    expected = preprocess(rows_of(images), alone, LIMITS, SPEC)
    found = preprocess(rows_of(images), together, LIMITS, SPEC, 2, decoder)
    assert found.equals(expected)
    counted = together.pop("gpu_decode")
    assert counted["rows_in"] == len(images)
    assert counted["rows_out"] == sum(
        plain_jpeg_px(data, LIMITS) is not None and error is None and data != decoder.refused
        for data, error in zip(images, expected.column("error").to_pylist(), strict=True)
    )
    for counters in (alone, together):
        for entry in counters.values():
            entry.pop("busy_s")
    assert together == alone
    return found


# ------------------------------------------------------------------------------ which JPEGs


@pytest.mark.parametrize("name", [name for name in ODD if ODD[name].startswith(b"\xff\xd8\xff")])
def test_only_whole_upright_colour_jpegs_go_to_the_gpu(name: str):
    num_px = plain_jpeg_px(ODD[name], LIMITS)
    assert num_px == ((1 if name == "one_px.jpg" else 83 * 61) if name in PLAIN else None)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}])
def test_what_encoders_usually_write_is_plain(subsampling: int, options: dict[str, bool]):
    data = encode(base_image(3), "JPEG", subsampling=subsampling, quality=70, **options)
    assert plain_jpeg_px(data, LIMITS) == 83 * 61


def test_nothing_that_is_refused_on_the_cpu_goes_to_the_gpu():
    assert [name for name, file in BAD.items() if plain_jpeg_px(file.data, LIMITS)] == []
    assert plain_jpeg_px(GOOD[0], DecodeLimits(len(GOOD[0]) - 1, MAX_IMAGE_PX)) is None
    assert plain_jpeg_px(GOOD[0], DecodeLimits(MAX_IMAGE_BYTES, 83 * 61 - 1)) is None
    assert plain_jpeg_px(b"", LIMITS) is None


@settings(max_examples=400)
@given(
    source=st.sampled_from([GOOD[0], ODD["progressive.jpg"], ODD["restarts.jpg"]]),
    changes=st.lists(st.tuples(st.integers(2, 700), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_a_damaged_header_that_passes_for_plain_decodes_on_the_cpu(
    source: bytes, changes: list[tuple[int, int]]
):
    damaged = bytearray(source)
    for position, value in changes:
        damaged[position] = value
    data = bytes(damaged)
    if num_px := plain_jpeg_px(data, LIMITS):
        assert decode_image(data, LIMITS)[0].numel() == num_px


def test_damage_of_every_kind_that_passes_for_plain_decodes_on_the_cpu():
    for name, data in mutations(5, 300):
        if plain_jpeg_px(data, LIMITS):
            assert decode_image(data, LIMITS).shape[0] == 3, name


@pytest.mark.parametrize("size", range(0, len(GOOD[0]), 97))
def test_no_cut_jpeg_is_plain(size: int):
    assert plain_header(GOOD[0][:size]) is None


# -------------------------------------------------------------------------------- grouping


@given(st.lists(st.integers(1, MAX_GROUP_PX), max_size=40), st.integers(0, 300))
def test_groups_hold_every_image_once_in_order_and_keep_the_limits(large: list[int], small: int):
    sizes = [*large, *[1000] * small]
    found = [*group(enumerate(sizes))]
    assert [row for rows in found for row in rows] == [*range(len(sizes))]
    for rows in found:
        assert 1 <= len(rows) <= MAX_GROUP_ROWS
        assert sum(sizes[row] for row in rows) <= MAX_GROUP_PX
    for rows, after in itertools.pairwise(found):  # no group is smaller than necessary
        is_full = len(rows) == MAX_GROUP_ROWS
        assert is_full or sum(sizes[row] for row in [*rows, after[0]]) > MAX_GROUP_PX


@settings(max_examples=60)
@given(st.lists(st.one_of(st.sampled_from(GOOD), st.just(BAD["twelve_bit.jpg"].data)), max_size=20))
def test_halving_finds_the_images_at_fault_and_only_those(images: list[bytes]):
    decoder = Libjpeg()
    found = decode_group(images, decoder) if images else []
    assert len(found) == len(images)
    for data, image in zip(images, found, strict=True):
        if data in GOOD:
            assert image is not None
            assert torch.equal(image, decode_image(data, LIMITS))
        else:
            assert image is None
    num_bad = sum(data not in GOOD for data in images)
    assert len(decoder.sizes) <= 1 + 2 * num_bad * max(1, len(images).bit_length())


# --------------------------------------------------------------------------- the two routes


@settings(max_examples=40)
@given(
    st.lists(
        st.sampled_from([*GOOD, STRIP, *ODD.values(), *(file.data for file in BAD.values())]),
        min_size=1,
        max_size=12,
    )
)
def test_a_slice_comes_out_the_same_by_both_routes(images: list[bytes]):
    both_routes(images, Libjpeg())


def test_every_bad_file_gets_the_reason_of_the_cpu_beside_good_ones():
    files = list(BAD.values())
    images = [data for file in files for data in (GOOD[0], file.data)]
    decoder = Libjpeg()
    found = both_routes(images, decoder)
    assert found.column("error").to_pylist()[1::2] == [file.reason for file in files]
    assert max(decoder.sizes) > 1, "good images were decoded in groups"


def test_what_the_decoder_refuses_goes_by_the_cpu_and_costs_no_row():
    decoder = Libjpeg(refused=GOOD[2])
    found = both_routes([*GOOD, *GOOD], decoder)
    assert found.column("error").null_count == 10
    assert decoder.sizes == [10, 5, 2, 3, 1, 2, 5, 2, 3, 1, 2]


def test_rows_are_handed_back_in_order_and_none_is_counted_twice():
    images = [GOOD[0], STRIP, ODD["grey.jpg"], GOOD[1], b"no image", ODD["plain.webp"]]
    encoded = rows_of(images).column("image")
    pixels = np.zeros((6, 24, 24, 3), np.uint8)
    groups = JpegGroups(encoded, pixels, Sizes(len(pixels)), LIMITS, SPEC, Libjpeg())
    assert groups.work([0, 1, 2, 3, 4, 5]) == [1, 2, 4, 5]
    assert (groups.decoded.rows_in, groups.transformed.rows_out) == (2, 2)
    assert [row for row in range(6) if pixels[row].any()] == [0, 3]


# ------------------------------------------------------------------ a decoder that is wrong


class Wrong(Libjpeg):
    """Decodes rightly for some rows; then adds to every level."""

    def __init__(self, after: int, levels: int) -> None:
        super().__init__()
        self.after, self.levels, self.done = after, levels, 0

    def __call__(self, encoded: list[torch.Tensor]) -> list[torch.Tensor]:
        images = super().__call__(encoded)
        self.done += len(images)
        if self.done > self.after:
            images = [(image.int() + self.levels).clamp(0, 255).byte() for image in images]
        return images


def decoded_by(decoder: Libjpeg, images: list[bytes]) -> tuple[pa.Table, float]:
    counters: Counters = {}
    found = preprocess(rows_of(images), counters, LIMITS, SPEC, 1, decoder)
    return found, counters["gpu_decode"]["rows_out"]


@pytest.mark.parametrize(
    "after", [FIRST_ROWS, *(pytest.param(n, marks=pytest.mark.slow) for n in (0, ONE_IN - 100))]
)
def test_a_decoder_that_is_wrong_is_found_and_the_cpu_decodes_instead(after: int, caplog):
    decoder, images = Wrong(after, 60), GOOD * (ONE_IN // len(GOOD))
    cpu = preprocess(rows_of(images), {}, LIMITS, SPEC)
    found, on_gpu = decoded_by(decoder, images)
    assert on_gpu == 0
    assert found.equals(cpu), "rows of this slice that came out wrong are decoded again"
    [said] = [record.getMessage() for record in caplog.records]
    assert "the GPU decoded an image otherwise than the CPU" in said
    assert "\n" not in said
    calls = len(decoder.sizes)
    assert decoded_by(decoder, images)[0].equals(cpu)
    assert len(decoder.sizes) == calls, "it is not asked again"
    assert len(caplog.records) == 1


def test_a_decoder_that_rounds_otherwise_is_trusted(caplog):
    decoder = Wrong(0, 2)
    assert decoded_by(decoder, GOOD)[1] == len(GOOD)
    assert not caplog.records


def test_a_part_of_an_image_that_is_wrong_is_found():
    right = np.full((100, 100, 3), 100, np.uint8)
    wrong = right.copy()
    wrong[:3] = 200
    assert not Trust().hold(wrong, right)
    assert Trust().hold(right + 3, right)


def test_the_first_rows_and_one_in_a_thousand_later_are_compared():
    trust = Trust()
    due = [row for row in range(1, 3 * ONE_IN + 1) if trust.is_due()]
    assert due == [*range(1, FIRST_ROWS + 1), ONE_IN, 2 * ONE_IN, 3 * ONE_IN]


def test_what_is_copied_to_the_host_is_contiguous_and_a_group_at_a_time():
    """A copy that transposes on the host takes longer than decoding."""
    made = _Made()
    crop = torch.zeros(3, 24, 24, dtype=torch.uint8).permute(1, 2, 0)
    made.send(torch.stack([crop, crop]))
    assert made.wait().flags["C_CONTIGUOUS"]
    assert made.wait().shape == (2, 24, 24, 3)


# ------------------------------------------------------------------------------- on a GPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_decoder_that_is_not_there_is_named():
    spec = TransformSpec.from_dict({**SPEC.to_dict(), "jpeg_decoder": "gpu"})
    with pytest.raises(JobError, match=r"jpeg_decoder = gpu: .* here \(.*(CUDA|NVIDIA).*\); mend"):
        preprocess(rows_of(GOOD), {}, LIMITS, spec)


@pytest.mark.gpu
@needs_gpu
def test_nvjpeg_is_near_libjpeg():
    images = [encode(base_image(seed, 200, 150), "JPEG") for seed in range(MAX_GROUP_ROWS + 3)]
    for data, image in zip(images, decode_group(images, gpu_decoder()), strict=True):
        assert image is not None
        assert image.device.type == "cuda"
        difference = image.cpu().float() - decode_image(data, LIMITS).float()
        assert difference.abs().mean() < 2


@pytest.mark.gpu
@needs_gpu
def test_decoding_overwrites_no_memory_that_queued_work_still_reads():
    """The decoder does not wait for work that is queued when it gets memory from torch."""
    data = encode(base_image(1, 600, 800), "JPEG")
    decoder = gpu_decoder()
    slow = torch.rand(4096, 4096, device="cuda")
    sums = []
    for _ in range(100):
        image = torch.ones(3, 600, 800, dtype=torch.uint8, device="cuda")
        for _ in range(4):
            slow = (slow @ slow).clamp(0, 1)  # what reads the image next waits for this
        sums.append(image.sum(dtype=torch.int64))
        del image
        [decoded] = decoder([torch.frombuffer(bytearray(data), dtype=torch.uint8)])
        del decoded
    torch.cuda.synchronize()
    assert {int(each) for each in sums} == {3 * 600 * 800}


@pytest.mark.gpu
@needs_gpu
def test_a_slice_on_the_gpu_has_the_reasons_of_the_cpu_and_pixels_near_its():
    spec = TransformSpec.from_dict({**SPEC.to_dict(), "jpeg_decoder": "gpu"})
    images = [*GOOD, STRIP, *ODD.values(), *(file.data for file in BAD.values())]
    found = preprocess(rows_of(images), {}, LIMITS, spec)
    expected = preprocess(rows_of(images), {}, LIMITS, SPEC)
    assert found.drop_columns(["image"]).equals(expected.drop_columns(["image"]))
    pixels = [images_from_arrow(rows.column("image"), SPEC.shape) for rows in (found, expected)]
    assert np.abs(pixels[0].astype(int) - pixels[1]).mean() < 2
