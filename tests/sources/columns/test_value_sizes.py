"""The bytes of values: those that a row refers to, however they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.failures import Failure, Reason
from pipeline.sources.columns import value_sizes
from pipeline.sources.columns.value_sizes import (
    MAX_VALUE_BYTES,
    value_bytes,
    with_compact_dictionaries,
    without_large,
)

TEXTS = st.none() | st.text(max_size=5)


def size_of(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list | tuple):
        return sum(size_of(item) for item in value)
    if isinstance(value, dict):
        return sum(size_of(item) for item in value.values())
    return 0


@given(
    values=st.lists(TEXTS, max_size=9),
    dtype=st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]),
    skip=st.integers(0, 3),
)
def test_texts_have_their_bytes(values: list[str | None], dtype: pa.DataType, skip: int):
    column = pa.array(values, dtype).slice(skip)
    assert value_bytes(column).tolist() == [size_of(value) for value in values[skip:]]
    if dtype != pa.string_view():
        encoded = pa.array(values, dtype).dictionary_encode().slice(skip)
        assert value_bytes(encoded).tolist() == [size_of(value) for value in values[skip:]]


@given(values=st.lists(st.none() | st.lists(TEXTS, max_size=3), max_size=6), skip=st.integers(0, 3))
def test_lists_and_structs_have_the_bytes_of_what_is_in_them(
    values: list[list[str | None] | None], skip: int
):
    lists = pa.array(values, pa.list_(pa.string()))
    expected = [size_of(value) for value in values[skip:]]
    assert value_bytes(lists.slice(skip)).tolist() == expected
    maps = [None if v is None else [(str(i), item) for i, item in enumerate(v)] for v in values]
    keyed = pa.array(maps, pa.map_(pa.string(), pa.string())).slice(skip)
    assert value_bytes(keyed).tolist() == [
        expected[row] + len(value or []) for row, value in enumerate(maps[skip:])
    ]
    structs = pa.StructArray.from_arrays([lists, lists], ["a", "b"]).slice(skip)
    assert value_bytes(structs).tolist() == [2 * size for size in expected]


def test_numbers_have_their_width():
    assert value_bytes(pa.array([1, None, 3], pa.int32())).tolist()[0] in (4, 5)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(12, np.float32)), 4)
    assert value_bytes(vectors.slice(1)).tolist() == [16, 16]


@pytest.mark.parametrize("is_encoded", [False, True])
def test_a_value_that_is_too_large_costs_its_row(is_encoded: bool):
    column = pa.array(["small", "x" * (MAX_VALUE_BYTES + 1), None, "y" * 9])
    if is_encoded:
        column = column.dictionary_encode()
    failures: list[Failure | None] = [None] * 4
    table = without_large(
        pa.table({"t": column, "n": [1, 2, 3, 4]}), {"t": "t", "gone": "gone"}, failures
    )
    assert table.column("t").to_pylist() == ["small", None, None, "y" * 9]
    [failed] = [failure for failure in failures if failure]
    assert failures[1] is failed
    assert failed.reason is Reason.TOO_LARGE
    assert failed.num_bytes == MAX_VALUE_BYTES + 1
    assert failed.message == f"t has {MAX_VALUE_BYTES + 1} bytes, the limit is {MAX_VALUE_BYTES}"
    assert table.column("t").nbytes < 1000


@given(values=st.lists(TEXTS, max_size=9), skip=st.integers(0, 5), is_ordered=st.booleans())
def test_a_compact_dictionary_has_the_values_that_rows_refer_to(
    values: list[str | None], skip: int, is_ordered: bool
):
    encoded = pa.array(values, pa.string()).dictionary_encode()
    encoded = pa.DictionaryArray.from_arrays(
        encoded.indices, encoded.dictionary, ordered=is_ordered
    ).slice(skip)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(value_sizes, "_SMALL_DICTIONARY_BYTES", -1)
        table = with_compact_dictionaries(pa.table({"t": encoded}))
    compact = table.column("t").combine_chunks()
    assert compact.to_pylist() == values[skip:]
    assert compact.type == encoded.type
    used = {value for value in values[skip:] if value is not None}
    assert compact.dictionary.to_pylist() == [
        v for v in encoded.dictionary.to_pylist() if v in used
    ]
