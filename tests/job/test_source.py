"""The section `source`: which columns hold the input, and what does not go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

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
def test_one_place_says_which_columns_hold_the_input(
    fields: dict[str, Any], columns: InputColumns, name: str
):
    assert source(**fields).input_columns == columns
    assert source(**fields).input_name == name


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"text_column": "x", "features": ("a",)}, "give one of image_column, audio_column, "),
        ({"text_column": "x", "uri_column": "a"}, "give one of image_column, audio_column, "),
        ({"text_column": "x", "image_column": "a"}, "give one of image_column, audio_column, "),
        ({"audio_column": "x", "uri_column": "a"}, "give one of image_column, audio_column, "),
        ({"image_column": "x", "input": "audio"}, "needs audio_column or uri_column"),
        ({"text_column": "x", "input": "audio"}, "needs audio_column or uri_column"),
        ({"audio_encoding": "base64"}, "has no effect without audio_column"),
        ({"features": ("x",), "uri_column": "a"}, "give one of image_column, audio_column, "),
        ({"text_pair_column": "x"}, "text_pair_column has no effect without text_column"),
        ({"max_text_bytes": 5}, "max_text_bytes has no effect without text_column"),
        (
            {"text_column": "x", "image_encoding": "base64"},
            "image_encoding has no effect without image_column",
        ),
        (
            {"uri_column": "x", "image_encoding": "binary"},
            "image_encoding has no effect without image_column",
        ),
        ({"text_column": "x", "max_text_bytes": 0}, "greater than or equal to 1"),
        ({"image_encoding": "hex"}, "'binary' or 'base64'"),
        ({"format": "images", "text_column": "x"}, "no effect with format 'images'"),
        ({"format": "webdataset", "image_encoding": "base64"}, "no effect with format"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        source(**fields)


def test_several_inputs_are_sections_of_their_own():
    found = source(
        inputs={
            "photo": {"uri_column": "link"},
            "body": {"text_column": "a", "text_pair_column": "b"},
            "size": {"features": ("w", "h"), "null_features": "zero"},
        },
        uri_roots=("photos",),
        max_text_bytes=9,
    )
    assert found.input_columns == InputColumns("several", ("link", "a", "b", "w", "h"))
    assert found.input_name == "several"
    assert found.input_parts == {"photo": "image", "body": "text", "size": "features"}
    assert found.has_uris
    photo, body, size = found.parts.values()
    assert (photo.input_columns.kind, photo.uri_roots, photo.inputs) == ("uri", ("photos",), {})
    assert (body.input_columns.names, body.max_text_bytes) == (("a", "b"), 9)
    assert (size.features, size.null_features) == (("w", "h"), "zero")
    assert source().parts == {"": source()}
    assert source().input_parts == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"inputs": {"a": {}}},
            "give one of image_column, audio_column, uri_column, text_column and features",
        ),
        (
            {"inputs": {"a": {"image_column": "x", "text_column": "y"}}},
            "give one of image_column, audio_column, uri_column, text_column and features",
        ),
        (
            {"inputs": {"a": {"image_column": "x", "lossy_features": True}}},
            "lossy_features has no effect without features",
        ),
        ({"inputs": {"a": {"image_column": "x"}}, "text_column": "y"}, "text_column and inputs"),
        ({"inputs": {"a": {"image_column": "x"}}, "input": "image"}, "input has no effect with"),
        ({"inputs": {"a b": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"_a": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"a_": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"\u00e4": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"a__b": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"for": {"image_column": "x"}}}, "is that of an argument"),
        ({"inputs": {"a": {"image_column": "x"}}, "uri_roots": ("r",)}, "without uri_column"),
        (
            {"format": "jsonl", "inputs": {"a": {"image_column": "x"}}},
            "input 'a': format 'jsonl' holds texts",
        ),
        ({"format": "images", "inputs": {"a": {"image_column": "x"}}}, "no effect with format"),
    ],
)
def test_inputs_that_cannot_be_are_refused(fields: dict[str, Any], words: str):
    with pytest.raises(ValidationError, match=words):
        source(**fields)
