"""Packed slices, images, failures and schemas survive Arrow unchanged, without copies of images."""

from __future__ import annotations

import itertools
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pipeline.core.arrays import images_from_arrow, images_to_arrow
from pipeline.core.failures import Failure, Reason, failure_columns, failures_of
from pipeline.core.printable import MESSAGE_MAX_CHARS, clean_message, json_text
from pipeline.core.schema import (
    CLASSIFY_FIELDS,
    ERROR,
    IMAGE_FIELDS,
    RESERVED_COLUMNS,
    prediction_schema,
    source_schema,
    staged_schema,
)
from pipeline.core.slices import SliceKey, pack, unpack

FAILURES = st.builds(
    Failure,
    st.sampled_from(Reason),
    st.sampled_from(["read", "decode"]),
    st.text(max_size=30).map(clean_message),
    st.none() | st.just("0" * 64),
    st.none() | st.integers(0, 2**40),
)


def pixels(num_rows: int, size_px: int = 4) -> np.ndarray:
    shape = (num_rows, size_px, size_px, 3)
    return np.random.default_rng(num_rows).integers(0, 256, shape, np.uint8)


def example_rows(num_rows: int) -> pa.Table:
    """Rows with what is hard to carry: nulls, a dictionary, nested values, images."""
    failures = [
        None if row % 3 else Failure(Reason.EMPTY, "decode", "x") for row in range(num_rows)
    ]
    return pa.table(
        {
            "row_id": pa.array([f"r{row}" for row in range(num_rows)], pa.string()),
            "city": pa.array(
                [f"c{row % 2}" for row in range(num_rows)], "string"
            ).dictionary_encode(),
            "tags": pa.array(
                [None if row % 2 else ["a"] for row in range(num_rows)], pa.list_(pa.string())
            ),
            "image": images_to_arrow(pixels(num_rows)),
            **failure_columns(failures),
        }
    )


# ---------------------------------------------------------------------------- packed slices


@given(sizes=st.lists(st.integers(0, 20), min_size=1, max_size=5), has_aside=st.booleans())
def test_packed_slices_come_out_the_same_and_in_order(sizes: list[int], has_aside: bool):
    packed, expected = [], []
    for index, num_rows in enumerate(sizes):
        key = SliceKey(index, 10 * index, 10 * index + num_rows, is_last=index % 2 == 0)
        counters = {"read": {"rows_in": num_rows, "busy_s": 0.5}}
        rows, aside = example_rows(num_rows), example_rows(2 * num_rows).select(["row_id", "tags"])
        packed.append(pack(key, counters, rows, aside if has_aside else None))
        expected.append((key, counters, rows, aside))
    block = pa.concat_tables(packed)
    assert block.num_rows == len(sizes), "a slice is one row, which Ray cannot cut"
    unpacked = unpack(block)
    assert [entry[:2] for entry in unpacked] == [entry[:2] for entry in expected]
    for (_, _, mine, my_aside), (_, _, theirs, aside) in zip(unpacked, expected, strict=True):
        assert mine.equals(theirs)
        mine.validate(full=True)
        assert (my_aside is not None) == has_aside
        assert my_aside is None or my_aside.equals(aside)


def test_slices_of_different_sizes_in_one_chunk_are_told_apart_however_ray_cuts_it():
    sizes = [5, 2, 7]
    keys = [SliceKey(index, 0, size, is_last=True) for index, size in enumerate(sizes)]
    packed = [pack(key, {}, example_rows(key.num_rows)) for key in keys]
    block = pa.concat_tables(packed).combine_chunks()
    for first, end in itertools.combinations_with_replacement(range(4), 2):
        unpacked = unpack(block.slice(first, end - first))
        assert [key for key, *_ in unpacked] == keys[first:end]
        for key, _, rows, _ in unpacked:
            assert rows.equals(example_rows(key.num_rows))


def test_rows_in_many_chunks_pack_like_rows_in_one():
    rows = pa.concat_tables([example_rows(3), example_rows(4)])
    ((_, _, unpacked, _),) = unpack(pack(SliceKey(0, 0, 7, is_last=True), {}, rows))
    assert unpacked.to_pylist() == rows.to_pylist()


def test_unpacking_copies_no_pixels():
    rows = pa.table({"image": images_to_arrow(pixels(6, 256))})
    block = pack(SliceKey(0, 0, 6, is_last=True), {}, rows)
    before = pa.total_allocated_bytes()
    ((_, _, rows, _),) = unpack(block)
    images = images_from_arrow(rows.column("image"), (256, 256, 3))
    assert pa.total_allocated_bytes() - before < images.nbytes / 100
    assert not images.flags.writeable
    assert not images.flags.owndata


# ---------------------------------------------------------------------------- images


@given(
    images=npst.arrays(np.uint8, st.tuples(st.integers(0, 9), st.just(3), st.just(3), st.just(3))),
    cuts=st.lists(st.integers(0, 9), max_size=3),
)
def test_images_survive_arrow_in_any_chunks(images: np.ndarray, cuts: list[int]):
    column = images_to_arrow(images)
    assert column.type == pa.binary(27)
    assert np.array_equal(images_from_arrow(column, (3, 3, 3)), images)
    edges = [0, *sorted(min(cut, len(images)) for cut in cuts), len(images)]
    pairs = list(pairwise(edges))
    chunked = pa.chunked_array([column.slice(a, b - a) for a, b in pairs], column.type)
    assert np.array_equal(images_from_arrow(chunked, (3, 3, 3)), images)
    for start, stop in pairs:
        part = column.slice(start, stop - start)
        assert np.array_equal(images_from_arrow(part, (3, 3, 3)), images[start:stop])


def test_no_images_have_the_right_shape():
    empty = pa.chunked_array([], pa.binary(27))
    assert images_from_arrow(empty, (3, 3, 3)).shape == (0, 3, 3, 3)


def test_images_need_not_lie_in_one_piece_of_memory():
    images = pixels(5)[::2, :, ::-1]
    assert np.array_equal(images_from_arrow(images_to_arrow(images), (4, 4, 3)), images)


# ---------------------------------------------------------------------------- failures


@given(failures=st.lists(st.none() | FAILURES, max_size=8))
def test_failures_survive_their_columns(failures: list[Failure | None]):
    table = pa.table(failure_columns(failures))
    assert failures_of(table) == failures
    assert table.column(ERROR).null_count == failures.count(None)


@given(text=st.text())
def test_a_message_is_one_printable_line(text: str):
    clean = clean_message(text)
    assert len(clean) <= MESSAGE_MAX_CHARS
    assert clean == "" or clean.isprintable()
    assert clean.split() == clean.split(" ") or clean == ""


def test_a_message_cannot_forge_a_log_line_or_a_terminal_command():
    clean = clean_message("bad\n2026-11-24 INFO all is well\r\x1b[2Jdone\u2028more\x00\u202e")
    assert clean == r"bad 2026-11-24 INFO all is well \x1b[2Jdone more\x00\u202e"
    assert clean_message("x" * 10_000) == "x" * MESSAGE_MAX_CHARS


def test_numbers_of_numpy_are_numbers_of_json_and_its_times_and_arrays_text():
    numbers = [np.float32(0.5), np.int64(7), np.uint8(2), np.bool_(True), np.array(3)]
    assert json_text(numbers) == "[0.5, 7, 2, true, 3]"
    others = [np.float32("nan"), np.datetime64("2026-12-01", "ns"), np.array([1, 2])]
    assert json_text(others) == '["nan", "2026-12-01T00:00:00.000000000", "[1 2]"]'


def test_reasons_are_plain_lower_case_codes():
    assert len({reason.value for reason in Reason}) == len(Reason)
    for reason in Reason:
        assert reason.value == reason.name.lower()
        assert reason.value.replace("_", "").isalpha()


# ---------------------------------------------------------------------------- schemas

PASSED = [pa.field("n", pa.int64()), pa.field("city", pa.string())]


@pytest.mark.parametrize(
    ("schema", "fields"),
    [
        (source_schema, IMAGE_FIELDS),
        (prediction_schema, CLASSIFY_FIELDS),
        (staged_schema, CLASSIFY_FIELDS),
    ],
)
def test_pass_through_columns_follow_the_id_and_nothing_is_named_twice(schema, fields):
    names = schema(PASSED, fields).names
    assert names[:4] == ["row_id", "uri", "n", "city"]
    assert len(set(names)) == len(names)
    assert schema([], fields).names == [name for name in names if name not in ("n", "city")]


def test_every_column_that_the_output_makes_is_reserved():
    for schema in (
        source_schema([], IMAGE_FIELDS),
        prediction_schema([], CLASSIFY_FIELDS),
        staged_schema([], CLASSIFY_FIELDS),
    ):
        assert set(schema.names) <= RESERVED_COLUMNS


def test_published_columns_are_those_of_the_contract():
    schema = prediction_schema([], CLASSIFY_FIELDS)
    assert schema.names == ["row_id", "uri", "label", "label_id", "score", "top_k"]
    assert schema.field("label_id").type == pa.int32()
    assert schema.field("score").type == pa.float32()
    assert [f.name for f in schema.field("top_k").type.value_type] == ["label", "label_id", "score"]
