"""Test that the reference check uses exactly decoded pixels of the first rows."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pytest
from support.inputs.badfiles import MAX_IMAGE_BYTES, MAX_IMAGE_PX, base_image, encode
from support.runs.jobs import job_of

from pipeline.core.arrays import images_from_arrow, images_to_arrow
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.figures import Counters
from pipeline.core.schema import EXACT, IMAGE_FIELDS
from pipeline.execution.stages import Preprocessing
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.images.reference_pixels import (
    NUM_REFERENCE_ROWS,
    choose_reference_rows,
    with_reference_pixels,
)

SIZE_PX = models.TRANSFORM["size_px"]
LIMITS = AgreementLimits(0.05, 0.999, 0.01)
FAILED = Failure(Reason.NULL_INPUT, "read", "image is null")


@functools.cache
def photos(number: int) -> list[bytes]:
    return [encode(base_image(seed, 300, 300), "JPEG") for seed in range(number)]


def rows_of(images: list[bytes], failed: set[int] = frozenset()) -> pa.Table:
    return pa.table(
        {
            "row_id": [f"r{index}" for index in range(len(images))],
            "uri": [f"/in/{index}" for index in range(len(images))],
            "image": pa.array(images, pa.large_binary()),
            **failure_columns([FAILED if row in failed else None for row in range(len(images))]),
        }
    )


def decoder(**transform: Any) -> Preprocessing:
    return Preprocessing(spec_of(**transform).input, MAX_IMAGE_BYTES, MAX_IMAGE_PX, IMAGE_FIELDS)


def spec_of(num_gpus: float = 0.0, **transform: Any) -> Any:
    job = job_of(
        {"factory": "models:colours", "labels": models.LABELS, "top_k": 3},
        transform={**models.TRANSFORM, **transform},
        resources={"num_gpus": num_gpus},
    )
    return resolve_model(job, ["models"])


def predictor(spec: Any, num_gpus: float = 0.0) -> TorchEngine:
    config = PredictorConfig(spec, 8, num_gpus, 1, pa.schema([]), limits=LIMITS)
    return TorchEngine(replace(config, run_id=f"exact-{np.random.default_rng().bytes(8).hex()}"))


def exact_column(rows: pa.Table) -> list[bytes | None]:
    return rows.column(EXACT).to_pylist()


def test_the_first_rows_that_have_not_failed_carry_the_pixels_of_the_cpu():
    shrinking, exact = decoder(shrink_on_load=True), decoder()
    rows = rows_of([*photos(3), b"no image", *photos(20)], failed={1})
    counters: Counters = {}
    checked = with_reference_pixels(rows, counters, shrinking.exact)
    assert checked.drop_columns([EXACT]).equals(rows)
    expected = exact({}, rows).column("image").to_pylist()
    chosen = [0, *range(2, NUM_REFERENCE_ROWS + 1)]
    assert exact_column(checked) == [
        expected[row] if row in chosen and row != 3 else None for row in range(rows.num_rows)
    ]
    assert counters["reference_check"]["busy_s"] > 0
    assert counters["reference_check"]["num_rows"] == 0, "they are counted where they are compared"


def test_a_slice_of_failed_rows_stays_as_it_is():
    rows = rows_of(photos(2), failed={0, 1})
    assert with_reference_pixels(rows, {}, decoder().exact) is rows


def test_exact_pixels_pass_the_decoder_and_are_gone_after_the_model():
    shrinking = decoder(shrink_on_load=True)
    rows = with_reference_pixels(rows_of(photos(4)), {}, shrinking.exact)
    decoded = shrinking({}, rows)
    assert exact_column(decoded) == exact_column(rows)
    assert decoded.column("image").to_pylist() != exact_column(rows), "shrinking changes pixels"
    predicted = predictor(spec_of(shrink_on_load=True)).predict(decoded, {})
    assert EXACT not in predicted.column_names


def test_the_rows_to_compare_are_predicted_ones_with_reference_pixels():
    shrinking = decoder(shrink_on_load=True)
    rows = shrinking({}, with_reference_pixels(rows_of(photos(20)), {}, shrinking.exact))
    rows = pa.concat_tables([rows[:7], rows[7:]])
    seen = shrinking.input
    inputs = seen.arrays(rows)
    ok = np.array([1, 2, 5, 9, 15, 16, 19])
    chosen, exact = choose_reference_rows(rows, seen, inputs, ok)
    assert chosen.tolist() == [1, 2, 5, 9, 15]
    column = decoder()({}, rows_of(photos(20))).column("image")
    whole = images_from_arrow(column, (SIZE_PX, SIZE_PX, 3))
    assert np.array_equal(exact["image"], whole[chosen])


def test_without_exact_pixels_the_model_sees_what_eager_fp32_sees():
    pixels = np.arange(20 * SIZE_PX * SIZE_PX * 3, dtype=np.uint32).astype(np.uint8)
    inputs = {"image": pixels.reshape(20, SIZE_PX, SIZE_PX, 3)}
    rows, ok = pa.table({"n": range(20)}), np.arange(2, 20)
    chosen, same = choose_reference_rows(rows, decoder().input, inputs, ok)
    assert chosen.tolist() == [*range(2, 2 + NUM_REFERENCE_ROWS)]
    assert np.array_equal(same["image"], inputs["image"][chosen])
    chosen, same = choose_reference_rows(rows, decoder(shrink_on_load=True).input, inputs, ok)
    assert len(chosen) == len(same["image"]) == 0, "approximate pixels are no reference"


def test_a_model_waits_for_a_slice_with_reference_pixels():
    shrinking = decoder(shrink_on_load=True)
    counters: Counters = {}
    model = predictor(spec_of(shrink_on_load=True))
    model.predict(shrinking({}, rows_of(photos(3))), counters)
    assert model.awaits_reference_check
    assert "reference_check" not in counters
    model.predict(shrinking.step_with_reference(rows_of(photos(3)), {}), counters)
    assert not model.awaits_reference_check
    assert counters["reference_check"]["num_rows"] == 3


@pytest.mark.parametrize(("is_same", "agreed"), [(True, 4), (False, 0)])
def test_a_decoder_that_changes_colours_is_caught(is_same: bool, agreed: int):
    exact = decoder()
    red, blue = (np.full((4, SIZE_PX, SIZE_PX, 3), 20, np.uint8) for _ in range(2))
    red[..., 0], blue[..., 2] = 220, 220
    rows = exact({}, rows_of(photos(4)))
    rows = rows.set_column(rows.column_names.index("image"), "image", images_to_arrow(red))
    rows = rows.append_column(EXACT, images_to_arrow(red if is_same else blue))
    model = predictor(spec_of(shrink_on_load=True))
    assert model.awaits_reference_check
    counters: Counters = {}
    assert failures_of(model.predict(rows, counters)) == [None] * 4
    assert not model.awaits_reference_check
    checked = counters["reference_check"]
    assert (checked["num_rows"], checked["num_agreed"]) == (4, agreed)
