"""Test int8 models of rows whose shapes vary: texts, and images that keep their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.models import onnx_files
from support.models.snapshots import TEXTS, make_snapshot
from support.runs.jobs import job_over
from support.runs.predicting import predictor

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.runtimes import runtime_of
from pipeline.inference.runtimes.int8 import fetch_model, quantise
from pipeline.inference.runtimes.runtime import missing_reason
from pipeline.job.model import Model
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Inputs, Limits
from pipeline.runs.tuning.measure import calibrate
from pipeline.runs.tuning.workload import run_batches
from pipeline.storage.store import Store

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
RUNTIMES = ("onnxruntime", "openvino")
NUM_LAYERS, PRODUCTS_PER_LAYER = 2, 6
"""Query, key, value, output of attention, and two of the feed-forward net."""
CALIBRATED, OTHERS = 48, 32
MIN_COSINE, MAX_SCORE_DIFF = 0.99, 0.05


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Where int8 models go; the node cache is one of its own."""
    folder = tmp_path_factory.mktemp("int8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield Store(str(folder / "out"))


def config_of(store: Store, folder: Path, runtime: str, **section: Any) -> PredictorConfig:
    precision = "fp32" if runtime == "eager" else "int8"
    model = Model(path=str(folder), runtime=runtime, precision=precision, **section)
    spec = resolve_model(job_over("text", model))
    return PredictorConfig(spec, 16, 0.0, 1, pa.schema([]), models=store, batch_tokens=128)


def texts(seed: int, count: int) -> list[str]:
    """Texts of 1 to 60 words."""
    rng, words = np.random.default_rng(seed), " ".join(TEXTS).split()
    return [" ".join(rng.choice(words, rng.integers(1, 61))) for _ in range(count)]


def prepared(config: PredictorConfig, rows: list[str]) -> Inputs:
    seen = config.spec.input
    columns: dict[str, Any] = {TEXT: rows, **failure_columns([None] * len(rows))}
    return seen.arrays(seen.prepare(pa.table(columns), {}, Limits(1 << 20, 1 << 20)))


def calibrated(config: PredictorConfig) -> str:
    sha256, problem = calibrate(config, prepared(config, texts(0, CALIBRATED)))
    assert problem == ""
    return sha256


def both(config: PredictorConfig, runtime: str, sha256: str) -> tuple[Inputs, Inputs]:
    """Return what eager fp32 and int8 keep of texts that calibration has not seen."""
    inputs = prepared(config, texts(1, OTHERS))
    batches = run_batches(config.spec.input, inputs, config.limits_of_batch)
    assert len({(len(b.rows), inputs["num_tokens"][b.rows].max()) for b in batches}) > 3
    exact = replace(config, spec=config.spec.as_reference())
    spec = replace(config.spec, runtime=runtime, artefact_sha256=sha256)
    results = TorchEngine(replace(config, spec=spec)).reduce(inputs)
    return TorchEngine(exact).reduce(inputs), results


def require(runtime: str) -> None:
    if reason := missing_reason(runtime_of(runtime), "int8", is_on_gpu=False):
        pytest.skip(reason)


@pytest.fixture(scope="module")
def embedder(store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[PredictorConfig, str]:
    folder = make_snapshot(tmp_path_factory.mktemp("embed") / "bert", "bert", pooling="mean")
    config = config_of(store, folder, "onnxruntime")
    return config, calibrated(config)


def quantised_products(data: bytes) -> tuple[int, int, int]:
    """Return how many products have an int8 weight, how many an int8 result, and all there are."""
    graph = onnx.load_model_from_string(data).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    read_by = {name: node.op_type for node in graph.node for name in node.input}
    products = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    has_int8 = [
        {made_by.get(name) for name in node.input[:2]} == {"DequantizeLinear"} for node in products
    ]
    results = [read_by.get(node.output[0]) == "QuantizeLinear" for node in products]
    return sum(has_int8), sum(results), len(products)


@pytest.mark.slow
def test_of_an_encoder_the_products_with_weights_are_int8(
    store: Store, embedder: tuple[PredictorConfig, str]
):
    data = fetch_model(store, embedder[1])
    of_weights, results, products = quantised_products(data)
    assert of_weights == NUM_LAYERS * PRODUCTS_PER_LAYER
    assert results == 0
    assert products == of_weights + NUM_LAYERS * 2, "attention multiplies two activations"


@pytest.mark.slow  # test_int8 has batches of one shape in `make test`
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_embeddings_of_batches_of_any_shape_are_near_those_of_eager_fp32(
    embedder: tuple[PredictorConfig, str], runtime: str
):
    require(runtime)
    exact, rounded = (kept["embedding"] for kept in both(embedder[0], runtime, embedder[1]))
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(rounded, axis=1)
    cosines = (exact * rounded).sum(axis=1) / norms
    assert cosines.min() >= MIN_COSINE
    assert not np.array_equal(exact, rounded)


def test_the_range_of_a_tensor_is_that_of_batches_of_any_shape(tmp_path: Path):
    ends = [onnx_files.value(n, onnx_files.FLOAT, ["b", w]) for n, w in (("x", 4), ("y", 3))]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    weight = onnx_files.weights("w", 4, 3)
    model = onnx_files.make_model([node], ends[:1], ends[1:], [weight])
    path = onnx_files.save(model, tmp_path / "m.onnx")
    batches = [np.full((rows, 4), value, np.float32) for rows, value in ((1, 0.5), (3, -2), (2, 3))]
    for only_products in (False, True):
        made = quantise(path, [[batch] for batch in batches], only_products=only_products)
        graph = onnx.load_model_from_string(made).graph
        [node] = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "x"]
        known = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        assert known[node.input[1]] == pytest.approx((3 - -2) / 255)


def test_a_model_without_a_product_with_a_weight_is_told(tmp_path: Path):
    kinds = [onnx_files.value(name, onnx_files.FLOAT, ["b", 4, 4]) for name in "xyz"]
    node = onnx.helper.make_node("MatMul", ["x", "y"], ["z"], name="product")
    path = onnx_files.save(onnx_files.make_model([node], kinds[:2], kinds[2:]), tmp_path / "m.onnx")
    values = np.ones((2, 4, 4), np.float32)
    with pytest.raises(ValueError, match="no matrix product with a constant weight"):
        quantise(path, [[values, values]], only_products=True)


def varying_sizes(store: Store, runtime: str) -> PredictorConfig:
    sizes = {"resize": "none", "size_px": None, "resize_px": None, "interpolation": None}
    config = predictor("support.runs.predicting:pooled", 4, transform=sizes)._config
    spec = replace(config.spec, runtime=runtime, precision="int8")
    return replace(config, spec=spec, models=store)


def photos(seed: int) -> Inputs:
    rng, images = np.random.default_rng(seed), np.empty(24, object)
    for row in range(len(images)):
        height, width = 32 + 16 * (row % 3), 40 + 8 * (row % 2)
        coarse = rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        images[row] = coarse.repeat(8, axis=0).repeat(8, axis=1)
    return {"image": images}


@pytest.mark.slow
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_images_that_keep_their_sizes_are_calibrated_in_them(store: Store, runtime: str):
    require(runtime)
    config = varying_sizes(store, runtime)
    sha256, problem = calibrate(config, photos(0))
    assert problem == ""
    inputs = photos(1)
    exact = TorchEngine(replace(config, spec=config.spec.as_reference())).reduce(inputs)
    spec = replace(config.spec, artefact_sha256=sha256)
    results = TorchEngine(replace(config, spec=spec)).reduce(inputs)
    assert np.abs(exact["score"] - results["score"]).max() <= MAX_SCORE_DIFF
    assert np.array_equal(exact["label_id"][:, 0], results["label_id"][:, 0])
