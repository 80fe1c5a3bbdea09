"""Test that several inputs are prepared, batched and gathered as each would be alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.inputs.encoded import base_image, png
from support.models.tiny_tokenizer import text_settings

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason, failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import ERROR, IMAGE_FIELDS, MESSAGE, feature_fields, text_fields
from pipeline.preprocessing.composite_input import CompositeInput
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits, InputSettings, Limits

LIMITS = Limits(10**6, 10**6)
TRANSFORM = TransformSpec(24, 28, "bilinear", (0.4, 0.5, 0.6), (0.2, 0.2, 0.2))
FIELDS = {"image": IMAGE_FIELDS, "text": text_fields(has_pair=False), "features": feature_fields(2)}
TEXTS = ["the cat", "a dog ran fast, and the red cat sat", "", "one", "two", "the cat sat"]
NUM_ROWS = len(TEXTS)


def column_of(input_name: str, shift: int, bad: int | None) -> pa.Array:
    if input_name == "text":
        texts = TEXTS[shift:] + TEXTS[:shift]
        return pa.array(texts, pa.large_string())
    if input_name == "image":
        images = [png(base_image(row + shift)) for row in range(NUM_ROWS)]
        if bad is not None:
            images[bad] = b"no image"
        return pa.array(images, pa.large_binary())
    flat = pa.array(np.arange(NUM_ROWS * 2, dtype=np.float32) + shift)
    return pa.FixedSizeListArray.from_arrays(flat, 2)


def made(tmp_path: Path, parts: dict[str, str]) -> CompositeInput:
    settings = InputSettings(TRANSFORM, text_settings(tmp_path), parts)
    fields = [
        field.with_name(f"_in_{name}_{field.name}")
        for name, input_name in parts.items()
        for field in FIELDS[input_name]
    ]
    return CompositeInput.of(settings).fitted(pa.schema(fields))


def rows_of(parts: dict[str, str], bad: dict[str, int], failed: int | None = None) -> pa.Table:
    failure = Failure(Reason.NULL_INPUT, "read", "id is null")
    columns: dict[str, Any] = {
        "row_id": [f"r{row}" for row in range(NUM_ROWS)],
        "uri": [f"/in/{row}" for row in range(NUM_ROWS)],
        "n": list(range(NUM_ROWS)),
    }
    for shift, (name, input_name) in enumerate(parts.items()):
        column = column_of(input_name, shift, bad.get(name))
        columns[f"_in_{name}_{FIELDS[input_name].names[0]}"] = column
    failures = [failure if row == failed else None for row in range(NUM_ROWS)]
    return pa.table({**columns, **failure_columns(failures)})


THREE = {"photo": "image", "body": "text", "size": "features"}
TWO_IMAGES = {"left": "image", "right": "image"}
TWO_TEXTS = {"title": "text", "body": "text", "photo": "image"}


@pytest.mark.parametrize("parts", [THREE, TWO_IMAGES, TWO_TEXTS], ids=["three", "images", "texts"])
def test_each_input_is_what_it_would_be_alone(parts: dict[str, str], tmp_path: Path) -> None:
    seen = made(tmp_path, parts)
    rows = rows_of(parts, {})
    prepared = seen.prepare(rows, {}, LIMITS, 2)
    assert prepared.column("n").equals(rows.column("n"))
    assert not any(name in prepared.column_names for name in rows.column_names if "__text" in name)
    inputs = seen.arrays(prepared)
    limits = BatchLimits(4, 40)
    batches = seen.batches(inputs, np.arange(NUM_ROWS), limits)
    assert sorted(np.concatenate(batches)) == list(range(NUM_ROWS))
    slots = seen.slots(limits)
    for batch in batches:
        assert len(batch) <= limits.rows
        buffers = {
            name: np.zeros(math.prod(slot.shape), slot.dtype) for name, slot in slots.items()
        }
        shapes = seen.gather(inputs, batch, buffers)
        assert list(shapes) == list(slots)
        for name, part in seen.parts:
            alone = part.prepare(_alone(rows, name, parts), {}, LIMITS)
            arrays = part.arrays(alone)
            held = {
                tensor: np.zeros(math.prod(slot.shape), slot.dtype)
                for tensor, slot in part.slots(limits).items()
            }
            for tensor, shape in part.gather(arrays, batch, held).items():
                outer = seen.tensors[name][tensor]
                assert shapes[outer] == shape
                size = math.prod(shape)
                assert np.array_equal(buffers[outer][:size], held[tensor][:size])
                is_alone = len(batch) == 1
                assert not part.counts_tokens or is_alone or size <= limits.tokens


def _alone(rows: pa.Table, name: str, parts: dict[str, str]) -> pa.Table:
    column = FIELDS[parts[name]].names[0]
    kept = [other for other in rows.column_names if not other.startswith("_in_")]
    return rows.select(kept).append_column(column, rows.column(f"_in_{name}_{column}"))


def test_tensors_have_the_names_of_the_inputs(tmp_path: Path) -> None:
    ids = ["input_ids", "attention_mask"]
    assert [*made(tmp_path, THREE).slots(BatchLimits(2))] == ["photo", *ids, "size"]
    assert [*made(tmp_path, TWO_IMAGES).slots(BatchLimits(2))] == ["left", "right"]
    assert [*made(tmp_path, TWO_TEXTS).slots(BatchLimits(2))] == [
        *(f"title_{name}" for name in ids), *(f"body_{name}" for name in ids), "photo"
    ]  # fmt: skip
    with pytest.raises(JobError, match="two inputs have a tensor 'input_ids'"):
        made(tmp_path, {"input_ids": "image", "body": "text"})


def test_columns_are_published_under_their_names_unless_two_inputs_have_them(
    tmp_path: Path,
) -> None:
    names = [field.name for field in made(tmp_path, THREE).published_fields()]
    assert {"num_tokens", "truncated"} <= {*names}
    names = [field.name for field in made(tmp_path, TWO_TEXTS).published_fields()]
    assert {"title_num_tokens", "body_num_tokens", "title_truncated"} <= {*names}
    prepared = made(tmp_path, TWO_TEXTS).prepare(rows_of(TWO_TEXTS, {}), {}, LIMITS)
    assert {*names} <= {*prepared.column_names}


def test_a_row_fails_once_and_says_over_which_input(tmp_path: Path) -> None:
    seen, counters = made(tmp_path, TWO_IMAGES), Counters()
    prepared = seen.prepare(rows_of(TWO_IMAGES, {"left": 1, "right": 4}, 0), counters, LIMITS)
    assert prepared.column(ERROR).to_pylist() == [
        "null_input", "unidentified", None, None, "unidentified", None
    ]  # fmt: skip
    messages = prepared.column(MESSAGE).to_pylist()
    assert messages[0] == "id is null"
    assert messages[1].startswith("input 'left': ")
    assert messages[4].startswith("input 'right': ")
    for stage in ("decode", "transform"):
        done = counters[stage]
        assert done["rows_in"] == done["rows_out"] + done["rows_quarantined"]
    assert (counters["decode"]["rows_in"], counters["decode"]["rows_quarantined"]) == (5, 2)


def test_all_of_it_is_composed(tmp_path: Path) -> None:
    seen = made(tmp_path, THREE)
    assert seen.stage_names == ("decode", "transform", "tokenize")
    assert seen.counts_tokens
    assert {"decode", "transform", "tokenize", "features"} == {*seen.semantics}
    assert seen.exact() == seen
    assert seen.settings()["max_tokens"] == 16
    assert [part[:2] for part in seen.settings()["inputs"]] == [[*item] for item in THREE.items()]
    fast = CompositeInput((("a", seen.parts[0][1]), ("b", _shrinking(tmp_path))))
    assert fast.is_approximate
    assert not fast.exact().is_approximate
    inputs = made(tmp_path, TWO_TEXTS)
    prepared = inputs.prepare(rows_of(TWO_TEXTS, {}), {}, LIMITS)
    lengths = inputs.lengths(inputs.arrays(prepared), np.arange(NUM_ROWS))
    both = [prepared.column(f"{name}_num_tokens").to_numpy() for name in ("title", "body")]
    assert lengths is not None
    assert lengths.tolist() == (both[0] + both[1]).tolist()
    shapes = {"title_input_ids": (2, 8), "body_input_ids": (2, 16), "photo": (2, 4, 4, 3)}
    assert inputs.num_padded(shapes) == 48


def _shrinking(tmp_path: Path) -> Any:
    from dataclasses import replace

    seen = made(tmp_path, {"a": "image"}).parts[0][1]
    return replace(seen, transform=replace(TRANSFORM, shrink_on_load=True))
