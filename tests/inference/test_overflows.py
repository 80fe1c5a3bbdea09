"""A row whose output bf16 or fp16 cannot hold is predicted once more in fp32, and in no other case.

The model's outputs for white images are beyond bf16, those for black ones beyond fp32, too.
"""

from __future__ import annotations

from collections.abc import Iterator

import gpu_models
import numpy as np
import pytest
from support.faults.fake_device import FakeGpu, installed
from support.runs.predicting import BLACK, WHITE, images, is_predicted, predict, predictor, rows_of

from pipeline.models.agreement import AgreementLimits

KIB = 1 << 10
WHITE_ROWS, BLACK_ROWS = (3, 9, 10, 19), (0, 11)
LIMITS = AgreementLimits(0.1, 0.99, 0.1)


@pytest.fixture
def gpu() -> Iterator[FakeGpu]:
    with installed(FakeGpu()) as made:
        yield made


@pytest.fixture(autouse=True)
def loads() -> Iterator[list[int]]:
    gpu_models.loads.clear()
    yield gpu_models.loads
    gpu_models.loads.clear()


def pixels(num_rows: int = 20) -> np.ndarray:
    made = images(num_rows)
    made[list(WHITE_ROWS)], made[list(BLACK_ROWS)] = WHITE, BLACK
    return made


def brimming(num_kib: int = 0, num_gpus: float = 0, precision: str = "bf16", **options: object):
    args = {"num_bytes": num_kib * KIB}
    return predictor(
        "gpu_models:brimming", 8, num_gpus=num_gpus, args=args, precision=precision, **options
    )


@pytest.mark.parametrize("num_gpus", [0, 1], ids=["CPU", "GPU"])
def test_what_a_narrow_type_cannot_hold_is_what_fp32_gives(gpu: FakeGpu, num_gpus: int):
    rows, counters = predict(brimming(num_gpus=num_gpus), rows_of(pixels()))
    assert [row["error"] for row in rows] == [
        "non_finite" if row in BLACK_ROWS else None for row in range(20)
    ]
    exact, _ = predict(predictor("models:colours", 8), rows_of(pixels()))
    close, _ = predict(predictor("models:colours", 8, precision="bf16"), rows_of(pixels()))
    for number, row in enumerate(rows):
        if is_predicted(row):
            of = exact if number in WHITE_ROWS else close
            assert row["score"] == pytest.approx(of[number]["score"], abs=1e-6)
    assert counters["predict"]["rows_quarantined"] == len(BLACK_ROWS)
    assert [name for name in counters if name.startswith("advice.")] == [
        "advice.outputs of some rows are beyond bf16, so these rows were predicted once more in "
        "fp32: if they are many, another model.precision is faster"
    ]


def test_in_fp32_nothing_is_predicted_twice(loads: list[int]):
    rows, _ = predict(brimming(precision="fp32"), rows_of(pixels()[12:]))
    black, _ = predict(brimming(precision="fp32"), rows_of(pixels()[:1]))
    assert [row["error"] for row in [*rows, *black]] == [*[None] * 8, "non_finite"]
    assert len(loads) == 2


@pytest.mark.parametrize(
    "room_kib",
    [
        pytest.param(160, id="beside"),
        pytest.param(149, id="instead", marks=pytest.mark.slow),
        pytest.param(99, id="on the CPU", marks=pytest.mark.slow),
    ],
)
def test_the_second_model_finds_a_place_and_stays_only_beside_the_first(
    gpu: FakeGpu, room_kib: int, loads: list[int]
):
    gpu.total_bytes = room_kib * KIB
    model = brimming(100, num_gpus=1)
    loads_of = []
    for _ in range(2):
        rows, _ = predict(model, rows_of(pixels()))
        assert sum(is_predicted(row) for row in rows) == 20 - len(BLACK_ROWS)
        loads_of.append(len(loads))
    is_beside = room_kib > 150
    assert gpu.held_bytes == (150 if is_beside else 50) * KIB
    assert (loads_of[0] == loads_of[1]) == is_beside
    assert not gpu.pauses_s


def test_it_gives_its_place_to_batches_that_lack_memory(gpu: FakeGpu):
    gpu.total_bytes, gpu._row_bytes = 200 * KIB, KIB
    model = brimming(100, num_gpus=1)
    predict(model, rows_of(pixels()))
    assert gpu.held_bytes == 150 * KIB
    gpu._row_bytes = 10 * KIB
    rows, _ = predict(model, rows_of(images(20)))
    assert all(is_predicted(row) for row in rows)
    assert gpu.held_bytes == 50 * KIB


def test_rows_of_fp32_are_not_compared_with_fp32(gpu: FakeGpu):
    model = brimming(num_gpus=1, limits=LIMITS)
    white = np.full_like(images(4), WHITE)
    rows, counters = predict(model, rows_of(white))
    assert all(is_predicted(row) for row in rows)
    assert "reference_check" not in counters
    assert model.awaits_reference_check
    _, counters = predict(model, rows_of(pixels()))
    assert counters["reference_check"]["rows_in"] == counters["reference_check"]["rows_out"] == 14
