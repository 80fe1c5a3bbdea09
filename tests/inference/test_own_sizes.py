"""Test images that keep their sizes: batches of one size, growing buffers, and all runtimes."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.faults.fake_device import FakeGpu, installed
from support.inputs.badfiles import base_image
from support.runs.predicting import PASS_THROUGH, Pooled, predict, predictor
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.inference.devices.device_buffers import DeviceBuffer, make_device_buffers
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.runtime import missing_reason
from pipeline.inference.slice_run import Batches
from pipeline.preprocessing.images.decode_image import DecodeLimits, decode_image
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits, Limits, bytes_of, is_varying

VARYING_SIZE = {"resize": "none", "size_px": None, "resize_px": None, "interpolation": None}
SPEC = TransformSpec(None, None, None, (0.0,) * 3, (1.0,) * 3, resize="none")
LIMITS = Limits(10**7, 10**7)
SIZES = [(40, 30), (64, 64), (40, 30), (33, 97), (40, 30), (64, 64), (200, 150), (30, 40), (40, 30)]
BAD = 3


def encoded(size: tuple[int, int], seed: int) -> bytes:
    file = io.BytesIO()
    base_image(seed).resize(size, Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def rows_of(images: list[bytes]) -> pa.Table:
    ids = pa.array([f"r{row}" for row in range(len(images))])
    columns = {"row_id": ids, "uri": ids, "n": pa.array(range(len(images)), pa.int64())}
    image = pa.array(images, pa.large_binary())
    return pa.table({**columns, "image": image, **failure_columns([None] * len(images))})


def photos() -> list[bytes]:
    return [b"no image" if row == BAD else encoded(size, row) for row, size in enumerate(SIZES)]


def prepared() -> pa.Table:
    return ImageInput(SPEC).prepare(rows_of(photos()), {}, LIMITS, 2)


def varying_sizes(factory: str = "support.runs.predicting:pooled", **options: Any) -> TorchEngine:
    return predictor(factory, transform=VARYING_SIZE, **options)


def one_by_one() -> list[np.ndarray | None]:
    """A plain loop: each image alone through the net."""
    net = Pooled().eval()
    vectors: list[np.ndarray | None] = []
    for row, data in enumerate(photos()):
        if row == BAD:
            vectors.append(None)
            continue
        pixels = decode_image(data, DecodeLimits(*LIMITS)).float() / 255
        with torch.inference_mode():
            vectors.append(torch.softmax(net(pixels[None]), dim=1)[0].numpy())
    return vectors


def require_equal_to_the_loop(rows: list[dict[str, Any]]) -> None:
    for row, expected in zip(rows, one_by_one(), strict=True):
        if expected is None:
            assert row["error"] == "unidentified"
            continue
        assert row["label_id"] == int(expected.argmax())
        assert row["score"] == pytest.approx(float(expected.max()), abs=1e-5)


def test_batches_are_of_one_size_and_within_the_limit_of_pixels():
    seen, rows = ImageInput(SPEC), np.array([0, 1, 2, 4, 5, 6, 7, 8])
    inputs = seen.arrays(prepared())
    assert bytes_of(inputs, np.array([0, BAD, 7])) == 3 * (40 * 30 + 30 * 40)
    batches = seen.batches(inputs, rows, BatchLimits(3))
    assert [batch.tolist() for batch in batches] == [[6], [1, 5], [0, 2, 4], [8], [7]]
    tight = seen.batches(inputs, rows, BatchLimits(3, pixels=2 * 40 * 30))
    assert [batch.tolist() for batch in tight] == [[6], [1], [5], [0, 2], [4, 8], [7]]
    assert BatchLimits(8, pixels=100).halved(2) == BatchLimits(2, pixels=50)
    assert is_varying(seen)
    assert not is_varying(ImageInput(TransformSpec(8, 8, "bilinear", (0.0,) * 3, (1.0,) * 3)))


def test_a_buffer_grows_to_the_largest_batch_and_is_used_again():
    seen = ImageInput(SPEC)
    inputs, [slot] = seen.arrays(prepared()), seen.slots(BatchLimits(1)).values()
    memory = {"image": torch.zeros(math.prod(slot.shape), dtype=torch.uint8)}
    buffer, shapes, places = DeviceBuffer(memory, seen.gather), [], []

    def compute(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        shapes.append(tuple(batch["image"].shape))
        places.append(batch["image"].data_ptr())
        return {"image": batch["image"].clone()}

    for rows in ([7], [6], [0, 2]):
        buffer.start(inputs, np.array(rows), compute)
        [values] = buffer.finish().values()
        for image, row in zip(values, rows, strict=True):
            assert np.array_equal(image, inputs["image"][row])
    assert shapes == [(1, 40, 30, 3), (1, 150, 200, 3), (2, 30, 40, 3)]
    assert places[0] != places[1] == places[2]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_predictions_equal_a_plain_loop_over_the_images(batch_size: int):
    rows, _ = predict(varying_sizes(batch_size=batch_size), prepared())
    require_equal_to_the_loop(rows)


def test_buffers_that_grow_on_a_gpu_are_not_read_too_early():
    with installed(FakeGpu(copy_s=0.01)):
        rows, _ = predict(varying_sizes(batch_size=2, num_gpus=1), prepared())
    require_equal_to_the_loop(rows)


def test_a_buffer_grows_on_a_gpu_only_while_nothing_reads_the_old_memory():
    seen = ImageInput(SPEC)
    inputs, small, large = seen.arrays(prepared()), np.array([7]), np.array([6])
    with installed(FakeGpu(copy_s=0.01, rows_per_s=10)) as gpu:
        memory = {"image": gpu.pinned(40 * 30 * 3, torch.uint8)}
        free = make_device_buffers(lambda: dict(memory), seen.gather, gpu)
        first, second = (free.take(free.ticket()) for _ in range(2))
        empty, are_quiet = gpu.empty, list[bool]()

        def grow(num_values: int, dtype: torch.dtype) -> torch.Tensor:
            are_quiet.append(all(stream.num_waited == stream.num_queued for stream in gpu._streams))
            return empty(num_values, dtype)

        gpu.empty = grow
        for buffer, rows in ((first, small), (second, large)):
            gpu.call(buffer.start, inputs, rows, lambda batch: batch)
        for buffer, rows in ((first, small), (second, large)):
            assert np.array_equal(buffer.finish()["image"][0], inputs["image"][rows[0]])
    assert are_quiet == [True]


@pytest.mark.parametrize(
    "runtime",
    quick_cases(
        [("onnxruntime",), ("openvino",), ("mnn",), ("compile",)],
        lambda runtime: runtime == "mnn",
    ),
)
def test_a_runtime_takes_any_size_or_refuses_in_words(runtime: str):
    if reason := missing_reason(runtime_of(runtime), "fp32", is_on_gpu=False):
        pytest.skip(reason)
    if not runtime_of(runtime).takes_varying:
        with pytest.raises(JobError, match=r"images without transform.size_px in size; choose ano"):
            varying_sizes(runtime=runtime)
        return
    rows, _ = predict(varying_sizes(runtime=runtime), prepared())
    require_equal_to_the_loop(rows)


def test_lack_of_memory_halves_batches_and_costs_no_row():
    images = [encoded((40, 30), 1)] * 12 + [encoded((50, 50), 2)] * 5
    table = ImageInput(SPEC).prepare(rows_of(images), {}, LIMITS)
    rows, _ = predict(varying_sizes("models:hungry"), table)
    assert [row["error"] for row in rows] == [None] * 17
    assert len({row["label"] for row in rows[:12]}) == 1


def test_a_slice_without_any_image_has_only_failures():
    table = ImageInput(SPEC).prepare(rows_of([b"no image"] * 3), {}, LIMITS)
    rows, _ = predict(varying_sizes(), table)
    assert {row["error"] for row in rows} == {"unidentified"}


def test_images_are_views_of_the_column_that_crosses_the_object_store():
    table = prepared()
    [image] = ImageInput(SPEC).arrays(table.slice(1, 1))["image"]
    assert not image.flags.owndata
    assert not image.flags.writeable
    assert image.shape == (64, 64, 3)
    assert PASS_THROUGH.names == ["n"]


def test_after_an_error_between_batches_the_next_slice_gets_a_buffer(
    monkeypatch: pytest.MonkeyPatch,
):
    engine, table = varying_sizes(), prepared()

    def broken(*_: Any) -> None:
        raise MemoryError("no room for the next batch")

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "take", broken)
        with pytest.raises(MemoryError):
            predict(engine, table)
    require_equal_to_the_loop(predict(engine, table)[0])
