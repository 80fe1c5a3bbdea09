"""Test that equal predictions have an equal predictor key, and that differences are named."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from support.runs.plan_examples import SPEC

from pipeline.core.schema import IMAGE_FIELDS
from pipeline.models.spec import ModelSpec
from pipeline.planning.predictor_key import predictor_key, row_settings, why_other

WITH_WEIGHTS = replace(SPEC, weights_uri="w.safetensors", weights_sha256="1" * 64)
SEMANTICS = {"decode": 1, "predict": 2}


def key_of(model: ModelSpec, fields: pa.Schema = IMAGE_FIELDS, **others: Any) -> str:
    how = {"semantics": SEMANTICS, "extensions": {}, "limits": {}, **others}
    return predictor_key(model, fields, **how)


@pytest.mark.parametrize(
    "other",
    [
        replace(WITH_WEIGHTS, runtime="openvino"),
        replace(WITH_WEIGHTS, weights_uri="elsewhere/w.safetensors"),
        replace(WITH_WEIGHTS, is_pinned=True),
        replace(WITH_WEIGHTS, artefact_sha256="2" * 64),
        replace(WITH_WEIGHTS, storage_options={"key": "k"}),
    ],
    ids=["runtime", "path", "pinned", "artefact", "storage_options"],
)
def test_facts_that_decide_no_prediction_keep_the_key(other: ModelSpec):
    assert key_of(other) == key_of(WITH_WEIGHTS)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(WITH_WEIGHTS, weights_sha256="2" * 64), "the weights"),
        (replace(WITH_WEIGHTS, weights_key="ema"), "the weights"),
        (replace(WITH_WEIGHTS, code_sha256="3" * 64), "the model's code"),
        (replace(WITH_WEIGHTS, args={"depth": 2}), "the arguments of the model"),
        (replace(WITH_WEIGHTS, layer="head"), "the layer of the model"),
        (replace(WITH_WEIGHTS, pooling="mean"), "the pooling"),
        (
            replace(WITH_WEIGHTS, task=replace(WITH_WEIGHTS.task, labels=("b", "a"))),
            "the labels",
        ),
        (
            replace(WITH_WEIGHTS, task=replace(WITH_WEIGHTS.task, top_k=1)),
            "model.top_k 2 -> default",
        ),
        (
            replace(WITH_WEIGHTS, task=replace(WITH_WEIGHTS.task, min_score=0.25)),
            "model.min_score default -> 0.25",
        ),
        (
            replace(WITH_WEIGHTS, precision="bf16"),
            "the precision, the types of the input's columns, or source.max_image_bytes or "
            "max_image_px",
        ),
    ],
)
def test_facts_that_decide_predictions_change_the_key_and_are_named(other: ModelSpec, words: str):
    assert key_of(other) != key_of(WITH_WEIGHTS)
    assert why_other(WITH_WEIGHTS.to_dict(), other.to_dict()) == words


def test_semantics_extensions_and_types_of_columns_are_part_of_the_key():
    now = {"semantics": {"decode": 2, "predict": 2}}
    assert key_of(WITH_WEIGHTS, **now) != key_of(WITH_WEIGHTS)
    model = WITH_WEIGHTS.to_dict()
    assert why_other(model, model, ({"semantics": SEMANTICS}, now)) == (
        "how this version of the package computes"
    )
    same = {"semantics": SEMANTICS}
    assert why_other(model, {**model, "layer": "x"}, (same, same)) == "the layer of the model"
    turned = dict(reversed(now["semantics"].items()))
    assert key_of(WITH_WEIGHTS, semantics=turned) == key_of(WITH_WEIGHTS, **now)
    extended = {"extensions": {"task spots": "4" * 64}}
    assert key_of(WITH_WEIGHTS, **extended) != key_of(WITH_WEIGHTS)
    assert why_other(model, model, ({}, extended)) == "the code of an extension"
    fields = pa.schema([("image", pa.string())])
    assert key_of(WITH_WEIGHTS, fields) != key_of(WITH_WEIGHTS)


def test_a_new_version_of_an_installed_library_is_no_other_predictor():
    library = replace(WITH_WEIGHTS, origin="torchvision")
    newer = replace(library, code_sha256="5" * 64)
    assert key_of(newer) == key_of(library)
    assert why_other(library.to_dict(), replace(newer, layer="x").to_dict()) == (
        "the layer of the model"
    )


def test_a_model_whose_tensors_come_from_code_has_no_key():
    assert key_of(replace(SPEC, weights_uri=None, directory=None)) == ""


def test_row_settings_know_columns_their_types_the_source_and_its_root():
    base: tuple[Any, ...] = ({"format": "parquet"}, "/in", pa.schema([("n", pa.int64())]))
    task = pa.schema([("label", pa.string())])
    first = row_settings(*base, task)
    others = [
        row_settings({"format": "jsonl"}, *base[1:], task),
        row_settings(base[0], "/other", base[2], task),
        row_settings(*base[:2], pa.schema([("n", pa.int32())]), task),
        row_settings(*base, pa.schema([("label", pa.string()), ("score", pa.float32())])),
    ]
    assert len({first, *others}) == 5
    assert first == row_settings(*base, task)
