"""Test that each number and text of a row reaches the tensor of its name unchanged."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import JobError
from pipeline.core.schema import FEATURES, TEXT_FEATURE, feature_fields
from pipeline.inference.devices.device_buffers import DeviceBuffer
from pipeline.inference.runtimes.inference_module import InferenceModule
from pipeline.preprocessing.model_input import BatchLimits, InputSettings, TensorColumn
from pipeline.preprocessing.table_input import ColumnInput, FeatureInput, texts_of

COLUMNS = (
    TensorColumn("age", "int64"),
    TensorColumn("plan", "text"),
    TensorColumn("income", "float64"),
    TensorColumn("note", "text"),
)
FIELDS = feature_fields(2, ["plan", "note"], pa.float64())


def seen(columns: tuple[TensorColumn, ...] = COLUMNS, fields: pa.Schema = FIELDS) -> ColumnInput:
    return ColumnInput.of(InputSettings(columns=columns)).fitted(fields)


def table(plans: list[str | None], notes: list[str | None]) -> pa.Table:
    numbers = np.arange(2.0 * len(plans))
    return pa.table(
        {
            FEATURES: pa.FixedSizeListArray.from_arrays(pa.array(numbers), 2),
            f"{TEXT_FEATURE}plan": pa.array(plans, pa.large_string()),
            f"{TEXT_FEATURE}note": pa.array(notes, pa.large_string()),
        }
    )


def batches_of(rows: pa.Table, num_rows: int) -> list[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Row numbers of each batch, and copies of its tensors, from buffers that are reused."""
    made = seen()
    inputs, limits = made.arrays(rows), BatchLimits(num_rows)
    memory = {
        name: torch.zeros(int(np.prod(slot.shape)), dtype=getattr(torch, slot.dtype))
        for name, slot in made.slots(limits).items()
    }
    buffer = DeviceBuffer(memory, made.gather)
    batches = []
    for batch in made.batches(inputs, np.arange(rows.num_rows), limits):
        tensors = buffer.fill(inputs, batch)
        batches.append((batch, {name: tensor.numpy().copy() for name, tensor in tensors.items()}))
    return batches


@given(
    texts=st.lists(st.text(st.characters(codec="utf-8"), max_size=40), min_size=1, max_size=9),
    num_rows=st.integers(1, 4),
)
def test_every_text_arrives_as_it_is(texts: list[str], num_rows: int):
    rows = table(texts, texts[::-1])
    seen_rows = []
    for batch, tensors in batches_of(rows, num_rows):
        assert list(tensors) == [column.name for column in COLUMNS]
        assert len(batch) <= num_rows
        seen_rows += batch.tolist()
        assert texts_of(tensors["plan"]).tolist() == [texts[row] for row in batch]
        assert texts_of(tensors["note"]).tolist() == [texts[::-1][row] for row in batch]
        assert tensors["age"].tolist() == [[2.0 * row] for row in batch]
        assert tensors["income"].tolist() == [[2.0 * row + 1] for row in batch]
    assert sorted(seen_rows) == list(range(len(texts)))


def test_slices_of_larger_columns_and_nulls_of_failed_rows_are_read_where_they_are():
    rows = table(["x", "", None, "yes", "z"], ["a", "b", None, "c", "d"]).slice(1, 3)
    [(batch, tensors)] = batches_of(rows, 9)
    by_row = dict(zip(batch.tolist(), texts_of(tensors["plan"]).tolist(), strict=True))
    assert by_row == {0: "", 1: "", 2: "yes"}


def test_a_long_text_is_not_padding_for_all_others():
    rows = table(["x" * (1 << 20), *["y"] * 999], ["n"] * 1000)
    batches = batches_of(rows, 1000)
    assert max(tensors["plan"].nbytes for _, tensors in batches) <= 16 << 20
    assert len(batches[0][0]) < 20 < len(batches[-1][0])


def test_numbers_keep_their_type_up_to_the_model():
    module = InferenceModule(torch.nn.Identity(), seen(COLUMNS[:1], FIELDS_OF_ONE), torch.float32)
    batch = torch.tensor([[2.0**53]], dtype=torch.float64)
    assert module(batch).dtype == torch.float64
    assert seen().fields() == list(FIELDS)
    assert pickle.loads(pickle.dumps(seen())) == seen()


FIELDS_OF_ONE = feature_fields(1, [], pa.float64())


def test_columns_of_several_numbers_are_refused():
    with pytest.raises(JobError, match=r"one number from each of 2 columns \(age, income\)"):
        seen(fields=feature_fields(3, ["plan", "note"]))


def test_a_model_of_one_vector_takes_neither_texts_nor_float64():
    with pytest.raises(JobError, match="read_as: text, of plan, is for a model that takes col"):
        FeatureInput().fitted(feature_fields(2, ["plan"]))
    with pytest.raises(JobError, match="read_as: float64 is for a model that takes col"):
        FeatureInput().fitted(feature_fields(2, [], pa.float64()))
