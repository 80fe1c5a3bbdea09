"""The section `source`: the columns of the input, and the published fields."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.job.source import InputColumns, Source


def source(**fields: Any) -> Source:
    return Source(uri="in", **{"format": "parquet", **fields})


@pytest.mark.parametrize(
    ("fields", "columns", "name"),
    [
        ({}, InputColumns("image", ("image",)), "image"),
        ({"image_column": "x"}, InputColumns("image", ("x",)), "image"),
        ({"image_encoding": "base64"}, InputColumns("image", ("image",)), "image"),
        ({"uri_column": "x"}, InputColumns("uri", ("x",)), "image"),
        ({"features": ("b", "a")}, InputColumns("features", ("b", "a")), "features"),
        ({"text_column": "x"}, InputColumns("text", ("x",)), "text"),
        ({"text_column": "x", "text_pair_column": "y"}, InputColumns("text", ("x", "y")), "text"),
    ],
)
def test_the_columns_and_the_type_of_an_input(
    fields: dict[str, Any], columns: InputColumns, name: str
):
    assert source(**fields).input_columns == columns
    assert source(**fields).input_name == name


def test_each_of_several_inputs_is_a_section():
    section = source(
        inputs={
            "photo": {"uri_column": "link"},
            "body": {"text_column": "a", "text_pair_column": "b"},
            "size": {"features": ("w", "h"), "null_features": "zero"},
        },
        uri_roots=("photos",),
        max_text_bytes=9,
    )
    assert section.input_columns == InputColumns("several", ("link", "a", "b", "w", "h"))
    assert section.input_name == "several"
    assert section.input_parts == {"photo": "image", "body": "text", "size": "features"}
    assert section.has_uris
    photo, body, size = section.parts.values()
    assert (photo.input_columns.content, photo.uri_roots, photo.inputs) == ("uri", ("photos",), {})
    assert (body.input_columns.names, body.max_text_bytes) == (("a", "b"), 9)
    assert (size.features, size.null_features) == (("w", "h"), "zero")
    assert source().parts == {"": source()}
    assert source().input_parts == {}


def test_fields_that_may_hold_secrets_are_not_published():
    csv = source(format="csv", features=("a",), options={"delimiter": ";"})
    csv = csv.model_copy(update={"storage_options": {"secret": "s3cret"}})
    public = {"format": "csv", "features": ["a"]}
    assert csv.as_published() == {**public, "options": {"delimiter": ";"}}
    other = csv.model_copy(update={"format": "of_a_package", "options": {"token": "t0ken"}})
    assert other.as_published() == {**public, "format": "of_a_package"}
