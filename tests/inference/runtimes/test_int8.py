"""Test that int8 models are calibrated on rows, near eager fp32, and stored as checked bytes."""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from support.runs.jobs import job_of
from support.runs.predicting import PASS_THROUGH, Convolved, images, predict, rows_of
from support.runs.selection import quick_cases

from pipeline.core.errors import InfraError, JobError
from pipeline.core.output_folders import calibrated_model
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.int8 import _channel_scales, fetch_model, store_model
from pipeline.inference.runtimes.runtime import missing_reason
from pipeline.job.reading.loader import parse_job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.runs.tuning.measure import calibrate
from pipeline.storage.store import Store

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
RUNTIMES = ("onnxruntime", "openvino")
TOLERANCE = 0.05
"""Relative to the largest output: 8 bits are 0.4 % of a range, with three roundings."""


@pytest.fixture(autouse=True)
def _new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def config_of(store: Store, runtime: str = "onnxruntime", sha256: str | None = None) -> Any:
    precision = "fp32" if runtime == "eager" else "int8"
    job = job_of(
        {
            "factory": "support.runs.predicting:convolved",
            "labels": models.LABELS,
            "runtime": runtime,
            "precision": precision,
        },
        transform=models.TRANSFORM,
    )
    spec = resolve_model(job, ["support"])
    spec = replace(spec, artefact_sha256=sha256)
    return PredictorConfig(spec, 8, 0.0, 1, PASS_THROUGH, models=store)


def calibrated(store: Store) -> str:
    sha256, problem = calibrate(config_of(store), {"image": images(24)})
    assert problem == ""
    return sha256


def linear(*, external: bool = False) -> bytes:
    weight = onnx.numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    if external:
        weight.ClearField("raw_data")
        weight.data_location = onnx.TensorProto.EXTERNAL
        weight.external_data.add(key="location", value="../../etc/passwd")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, 4]) for name in "xy"
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [ends[0]], [ends[1]], [weight])
    return onnx.helper.make_model(graph).SerializeToString()


@pytest.mark.parametrize(
    "runtime", quick_cases(((name,) for name in RUNTIMES), lambda name: name == "onnxruntime")
)
def test_outputs_are_near_those_of_eager_fp32(tmp_path: Path, runtime: str):
    if reason := missing_reason(runtime_of(runtime), "int8", is_on_gpu=False):
        pytest.skip(reason)
    store = Store(str(tmp_path / "out"))
    config = config_of(store, runtime, calibrated(store))
    assert calibrated(store) == config.spec.artefact_sha256  # equal rows give equal models
    unseen = images(20, seed=5)
    with torch.inference_mode():
        pixels = torch.from_numpy(unseen).permute(0, 3, 1, 2) / 255.0
        expected = Convolved().eval()(pixels).softmax(1).max(1).values.numpy()
    results, _ = predict(TorchEngine(config), rows_of(unseen))
    reference, _ = predict(TorchEngine(config_of(store, "eager")), rows_of(unseen))
    differences = np.abs([row["score"] for row in results] - expected)
    assert differences.max() <= TOLERANCE
    assert [row["label"] for row in results] == [row["label"] for row in reference]
    stored = onnx.load_model_from_string(fetch_model(store, config.spec.artefact_sha256))
    assert "QuantizeLinear" in {node.op_type for node in stored.graph.node}


def test_sixteen_bits_hold_every_pair_of_products():
    rng = np.random.default_rng(0)
    for num_inputs in (1, 2, 5, 16):
        weights = rng.normal(size=(40, num_inputs, 3, 3))
        scales = _channel_scales(weights)
        q = np.round(weights / scales[:, None, None, None]).astype(int)
        assert np.abs(q).max() <= 127
        if num_inputs == 1:
            assert np.abs(q).max(axis=(1, 2, 3)).min() == 127
            continue
        walk = np.moveaxis(q, 1, -1).reshape(40, -1)
        step = 1 if num_inputs % 2 else 2
        sums = np.abs(walk[:, :-1:step] + walk[:, 1::step])
        assert 255 * sums.max() < 2**15
        assert (np.abs(q).max(axis=(1, 2, 3)) > 64).any()  # finer than 7 bits
    assert (_channel_scales(np.zeros((2, 4))) == 1.0).all()


def test_only_the_stored_bytes_are_loaded(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    data = linear()
    sha256 = store_model(store, data)
    assert sha256 == hashlib.sha256(data).hexdigest()
    assert store.list_files("_control")[0].path == calibrated_model(sha256)
    store.put(calibrated_model(sha256), linear() + b"\0")
    with pytest.raises(JobError, match="expected " + sha256):
        fetch_model(store, sha256)
    store_model(store, data)
    assert fetch_model(store, sha256) == data
    store.delete([calibrated_model(sha256)])
    assert fetch_model(store, sha256) == data  # this node has it
    (kept,) = (tmp_path / "cache").rglob("model.onnx")
    kept.write_bytes(linear() + b"\0")
    with pytest.raises(JobError, match="expected " + sha256):
        fetch_model(store, sha256)


def test_a_model_that_is_gone_or_was_never_made_is_no_model(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    with pytest.raises(InfraError, match="is gone"):
        fetch_model(store, "0" * 64)
    with pytest.raises(JobError, match="no calibrated model"):
        TorchEngine(config_of(store))


def test_a_model_must_not_name_other_files(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    with pytest.raises(JobError, match="another file"):
        store_model(store, linear(external=True))
    inner = onnx.load_model_from_string(linear(external=True)).graph
    node = onnx.helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    nested = onnx.load_model_from_string(linear())
    nested.graph.node.append(node)
    with pytest.raises(JobError, match="another file"):
        store_model(store, nested.SerializeToString())
    with pytest.raises(JobError, match="no ONNX model"):
        store_model(store, b"\xff\xff")
    assert store.list_files() == []


def test_calibration_tells_what_failed(tmp_path: Path):
    store = Store(str(tmp_path / "out"))
    config = config_of(store)
    gone = replace(config.spec, layer="nowhere")
    assert "nowhere" in calibrate(replace(config, spec=gone), {"image": images(8)})[1]
    assert "GPU" not in calibrate(replace(config, models=None), {"image": images(8)})[1]
    assert "CPU only" in calibrate(replace(config, num_gpus=1.0), {"image": images(8)})[1]


@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_a_job_that_cannot_have_int8_is_told_at_once(runtime: str):
    model = {"name": "resnet18", "runtime": runtime, "precision": "int8"}
    document = {"source": {"uri": "in", "format": "images"}, "model": model, "sink": {"uri": "out"}}
    with pytest.raises(JobError, match="needs runtime onnxruntime, openvino or auto"):
        parse_job(document, date=dt.date(2026, 11, 24), origin="test")
