"""Test that every input keeps the protocol: the built-in ones, and one of another distribution."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
import toy_input
import toy_package
from support.inputs.clips import RATE_HZ, encoded, tone
from support.inputs.encoded import base_image, png
from support.models.tiny_tokenizer import text_settings

from pipeline.core import registry
from pipeline.core.arrays import empty_column
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import (
    AUDIO_FIELDS,
    ERROR,
    FEATURES,
    IMAGE,
    IMAGE_FIELDS,
    feature_fields,
    input_column,
    source_schema,
    text_fields,
)
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.job.features import SourceInput
from pipeline.job.source import Source
from pipeline.preprocessing.audio.audio_settings import AudioSettings
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Cost,
    Input,
    InputSettings,
    Limits,
    bytes_of,
    cost_of,
    num_rows,
    take_rows,
)

NUM_ROWS, BAD = 5, 2
LIMITS = Limits(10**6, 10**6)
TRANSFORM = TransformSpec(24, 28, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
FAILED = Failure(Reason.NULL_INPUT, "read", "null")


def image_column() -> pa.Array:
    values = [None if row == BAD else png(base_image(row)) for row in range(NUM_ROWS)]
    return pa.array(values, pa.large_binary())


def feature_column() -> pa.Array:
    flat = pa.array(np.arange(NUM_ROWS * 3, dtype=np.float32))
    return pa.FixedSizeListArray.from_arrays(flat, 3)


def text_column() -> pa.Array:
    texts = ["", "the cat", "bad", "a dog ran fast, and the red cat sat on the blue mat", "one"]
    return pa.array([None if row == BAD else text for row, text in enumerate(texts)])


def clip_column() -> pa.Array:
    """Clips of one length, so that any of them share a batch."""
    clips = [encoded(tone(0.01, 400 + row)) for row in range(NUM_ROWS)]
    return pa.array([None if row == BAD else clip for row, clip in enumerate(clips)])


AUDIO = AudioSettings(RATE_HZ, 1.0)
PARTS = {"photo": "image", "body": "text", "size": "features"}
CASES: dict[str, tuple[pa.Schema, tuple[Callable[[], pa.Array], ...]]] = {
    "image": (IMAGE_FIELDS, (image_column,)),
    "features": (feature_fields(3), (feature_column,)),
    "text": (text_fields(has_pair=False), (text_column,)),
    "audio": (AUDIO_FIELDS, (clip_column,)),
    "toy": (IMAGE_FIELDS, (image_column,)),
    "several": (
        pa.schema(
            field.with_name(input_column(name, field.name))
            for name, fields in zip(
                PARTS, (IMAGE_FIELDS, text_fields(has_pair=False), feature_fields(3)), strict=True
            )
            for field in fields
        ),
        (image_column, text_column, feature_column),
    ),
}
"""Input -> the source's columns that it reads, and NUM_ROWS values of each; new inputs need a line
here."""


@pytest.fixture(autouse=True)
def _with_toy(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    site = toy_package.install(tmp_path_factory.mktemp("site"), toy_input.POINTS)
    monkeypatch.syspath_prepend(site)


@pytest.fixture(params=[*CASES])
def seen(request: pytest.FixtureRequest, tmp_path: Path) -> Input:
    input_type: type[Input] = registry.load(registry.INPUTS, request.param)
    made = input_type.of(InputSettings(TRANSFORM, text_settings(tmp_path), PARTS, audio=AUDIO))
    return made.fitted(CASES[request.param][0])


def rows_for(seen: Input) -> pa.Table:
    fields, columns_of = CASES[seen.name]
    ids = pa.array([str(row) for row in range(NUM_ROWS)])
    failures = [FAILED if row == BAD else None for row in range(NUM_ROWS)]
    inputs = dict(zip(fields.names, (column() for column in columns_of), strict=True))
    columns = {"row_id": ids, "uri": ids, **inputs, **failure_columns(failures)}
    return pa.table(columns, schema=source_schema([], fields))


def test_every_registered_input_is_tried_here():
    assert set(registry.names(registry.INPUTS)) == set(CASES)


def test_it_says_what_a_row_costs_and_how_large_a_batch_is(seen: Input):
    assert seen.cost in get_args(Cost)
    for is_on_gpu in (False, True):
        usual = seen.usual_batch(is_on_gpu=is_on_gpu)
        assert usual.rows >= 1
        assert bool(usual.tokens) == seen.counts_tokens


def test_the_columns_that_it_finds_are_there_and_a_job_can_name_them(seen: Input):
    rows = rows_for(seen)
    for columns in seen.columns_in(rows, ["row_id", "uri"]):
        assert {*columns.names} <= {*rows.column_names} - {"row_id", "uri"}
        assert {columns.field, *columns.more} <= {*Source.model_fields}


def test_several_inputs_cost_what_the_slowest_of_them_does():
    table: dict[str, Any] = {"features": ("n",)}
    text: dict[str, Any] = {"text_column": "t"}
    photo: dict[str, Any] = {"image_column": "i"}
    common: dict[str, Any] = {"uri": "in", "format": "parquet"}
    assert [cost_of(Source(**common, **part)) for part in (table, text, photo)] == [
        *("row", "text", "image")
    ]
    for parts, cost in (((text, table), "text"), ((text, photo), "image"), ((table,), "image")):
        inputs = {f"part{number}": SourceInput(**part) for number, part in enumerate(parts)}
        assert cost_of(Source(**common, inputs=inputs)) == cost


def test_it_is_plain_enough_for_ray_and_for_comparing(seen: Input):
    again = pickle.loads(pickle.dumps(seen))
    assert again == seen
    assert again.settings() == seen.settings()
    assert seen.exact().exact() == seen.exact()
    assert not seen.exact().is_approximate
    assert all(number >= 1 for number in seen.semantics.values())


def test_rows_stay_in_order_and_failed_ones_stay_failed(seen: Input):
    rows, counters = rows_for(seen), Counters()
    prepared = seen.prepare(rows, counters, LIMITS, 2)
    assert prepared.column("row_id").equals(rows.column("row_id"))
    errors = prepared.column(ERROR).to_pylist()
    assert [row for row, error in enumerate(errors) if error] == [BAD]
    assert set(counters) - {"tokenised"} == set(seen.stage_names)
    for stage in seen.stage_names:
        assert counters[stage]["rows_in"] == NUM_ROWS - 1
    for field in seen.fields():
        assert prepared.schema.field(field.name).type == field.type


def test_arrays_are_views_that_a_batch_is_gathered_from_once(seen: Input):
    prepared = seen.prepare(rows_for(seen), {}, LIMITS)
    inputs, slots = seen.arrays(prepared), seen.slots(BatchLimits(4))
    assert num_rows(inputs) == NUM_ROWS
    buffers = {name: np.full(math.prod(slot.shape), 7, slot.dtype) for name, slot in slots.items()}
    rows = np.array([4, 0, 3])
    shapes = seen.gather(inputs, rows, buffers)
    assert list(shapes) == list(slots)
    for name, shape in shapes.items():
        size = math.prod(shape)
        assert shape[0] == len(rows)
        assert (buffers[name][size:] == 7).all()
        if not seen.counts_tokens:
            values = inputs[name]
            views = [*values] if values.dtype == object else [values]
            assert not any(view.flags.owndata for view in views)
            assert np.array_equal(buffers[name][:size].reshape(shape), np.stack(values[rows]))


@pytest.mark.parametrize("limits", [BatchLimits(2), BatchLimits(100), BatchLimits(100, 8)])
def test_batches_have_every_row_once_within_the_limits(seen: Input, limits: BatchLimits):
    inputs = seen.arrays(seen.prepare(rows_for(seen), {}, LIMITS))
    rows = np.array([4, 0, 1, 3])
    batches = seen.batches(inputs, rows, limits)
    assert sorted(np.concatenate(batches)) == sorted(rows)
    for batch in batches:
        assert len(batch) <= limits.rows
        buffers = {
            name: np.zeros(math.prod(slot.shape), slot.dtype)
            for name, slot in seen.slots(limits).items()
        }
        num_padded = seen.num_padded(seen.gather(inputs, batch, buffers))
        assert bool(num_padded) == seen.counts_tokens
        assert len(batch) == 1 or not limits.tokens or num_padded <= limits.tokens


class Recorder(torch.nn.Module):
    """Records the arguments of its calls."""

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        self.called = (args, kwargs)
        return next(iter((*args, *kwargs.values())))


def test_one_tensor_goes_to_the_model_by_position_and_several_by_name(seen: Input):
    inputs = seen.arrays(seen.prepare(rows_for(seen), {}, LIMITS))
    limits = BatchLimits(NUM_ROWS)
    buffers = {
        name: np.zeros(math.prod(slot.shape), slot.dtype)
        for name, slot in seen.slots(limits).items()
    }
    good = np.delete(np.arange(NUM_ROWS), BAD)
    shapes = seen.gather(inputs, good, buffers)
    batch = {
        name: torch.from_numpy(values[: math.prod(shapes[name])].reshape(shapes[name]))
        for name, values in buffers.items()
    }
    recorder = Recorder()
    InferenceModule(recorder, seen, torch.float32).run(batch)
    args, kwargs = recorder.called
    assert list(kwargs) == (list(batch) if len(batch) > 1 else [])
    assert len(args) == (1 if len(batch) == 1 else 0)
    for given, tensor in zip(batch.values(), (*args, *kwargs.values()), strict=True):
        assert len(tensor) == len(good)
        assert tensor.dtype == (torch.int64 if given.dtype == torch.int32 else torch.float32)


def test_rows_of_several_arrays_are_taken_together():
    inputs = {"a": np.arange(3), "b": np.arange(6, dtype=np.float32).reshape(3, 2)}
    assert bytes_of(inputs, np.array([0, 1])) == 2 * (8 + 8)
    assert {n: v.tolist() for n, v in take_rows(inputs, [2, 0]).items()} == {
        "a": [2, 0],
        "b": [[4, 5], [0, 1]],
    }


def test_rows_without_an_input_have_nulls_or_zeros():
    assert empty_column(IMAGE_FIELDS.field(IMAGE).type, 2).to_pylist() == [None, None]
    dtype = feature_fields(2).field(FEATURES).type
    assert empty_column(dtype, 2).to_pylist() == [[0, 0], [0, 0]]
    assert empty_column(dtype, 2).type == dtype
