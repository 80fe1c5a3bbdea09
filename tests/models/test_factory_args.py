"""Test that arguments of factories and post-processing are checked and fingerprinted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.models.model_cases import resolve
from support.runs.predicting import predictor

from pipeline.core.errors import JobError
from pipeline.job.job import Model
from pipeline.models.spec import load_module
from pipeline.models.tasks import make_task

FACTORY = "models:scaled"
ARGS: dict[str, Any] = {"scale": 2.0, "order": [4, 3, 2, 1, 0], "shift": {"by": 1}}
OUTPUTS = [{"name": "means", "shape": [3]}]


def raw(**model: Any) -> dict[str, Any]:
    return {
        "task": "raw",
        "labels": None,
        "outputs": OUTPUTS,
        "factory": "models:channels",
        **model,
    }


def test_a_factory_is_called_with_the_arguments_of_the_job():
    module = load_module(resolve(factory=FACTORY, args=ARGS))
    plain = load_module(resolve())
    x = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(module(x), plain(x).flip(1) * 2 + 1)


def test_what_a_factory_does_to_its_arguments_stays_with_it():
    spec = resolve(factory=FACTORY, args=ARGS)
    load_module(spec).order.append(7)
    assert load_module(spec).order == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    ("factory", "args", "words"),
    [
        (
            FACTORY,
            {},
            "missing a required argument: 'scale', with those of model.args; it takes (scale",
        ),
        (FACTORY, {"scale": 1, "order": [], "size": 3}, "got an unexpected keyword argument 'siz"),
        (
            "models:colours",
            {"size": 3},
            "got an unexpected keyword argument 'size', with those of model.args; it takes ()",
        ),
    ],
)
def test_missing_and_unknown_arguments_are_named(factory: str, args: dict[str, Any], words: str):
    with pytest.raises(JobError) as caught:
        resolve(factory=factory, args=args)
    assert str(caught.value).startswith(f"model.factory = {factory!r}: {words}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "args", [{"a": float("inf")}, {"a": {1: 2}}, {"a": object()}, {"a": b"bytes"}, [1]]
)
def test_arguments_are_values_of_json(args: Any):
    with pytest.raises(ValueError, match=r"args"):
        Model(factory=FACTORY, args=args)


def test_arguments_without_their_function_have_no_effect():
    with pytest.raises(ValueError, match="args has no effect without factory"):
        Model(name="resnet18", args={"a": 1})
    with pytest.raises(ValueError, match="postprocess_args has no effect without postprocess"):
        Model(**{**raw(), "outputs": (), "postprocess_args": {"a": 1}})


def test_arguments_decide_the_fingerprint_and_what_the_node_keeps():
    spec, other = (resolve(factory=FACTORY, args={**ARGS, "scale": scale}) for scale in (2.0, 3.0))
    assert spec.to_dict()["args"] == ARGS
    assert spec.to_dict() != other.to_dict()
    weighed = [replace(candidate, weights_sha256="a" * 64).identity for candidate in (spec, other)]
    assert weighed[0] != weighed[1]
    assert resolve().to_dict()["args"] == {}


def test_post_processing_is_called_with_the_arguments_of_the_job():
    means = np.array([[0.1, 0.9, 0.3], [0.5, 0.2, 0.1]], np.float32)
    ok = np.ones(2, bool)
    for factor in (1.0, 10.0):
        spec = resolve(**raw(postprocess="models:Brighter", postprocess_args={"factor": factor}))
        assert spec.task.to_dict()["postprocess_args"] == {"factor": factor}
        columns = make_task(spec.task).columns(
            {"means": means}, ok, pa.table({"row_id": ["a"] * len(ok)})
        )
        np.testing.assert_allclose(columns["lead"].to_numpy(), [0.6 * factor, 0.3 * factor], 1e-5)
    assert resolve().task.to_dict()["postprocess_args"] == {}


def test_post_processing_of_a_module_that_was_not_allowed_is_refused():
    with pytest.raises(JobError, match=r"model\.postprocess.*not allowed"):
        resolve(**raw(postprocess="os:getcwd"))


def test_a_layer_that_is_not_there_is_named_beside_those_that_are():
    with pytest.raises(JobError, match=r"model\.layer = 'pol'.*pool, head"):
        predictor(**raw(layer="pol", top_k=None))
