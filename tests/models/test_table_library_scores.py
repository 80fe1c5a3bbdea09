"""Scores of models over tables are those of the library that fitted them.

Each row of `CASES` is a model of scikit-learn, XGBoost or LightGBM, fitted on few rows, exported to
ONNX as its library does it with `zipmap=False`, and predicted by the pipeline. Tolerances are
absolute: trees and linear models compute float32 where their library computes float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pyarrow as pa
import pytest
from support.runs.jobs import job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig

NUM_FEATURES, NUM_ROWS = 4, 96
_RNG = np.random.default_rng(0)
X = _RNG.normal(size=(NUM_ROWS, NUM_FEATURES)).astype(np.float32)
_SUM = X @ np.array([1.0, 0.5, -0.7, 0.2])
TARGETS = {"two": (_SUM > 0).astype(int), "three": np.digitize(_SUM, [-0.6, 0.6]), "numbers": _SUM}
TEXTS = np.array(["low", "middle", "high"])


def fitted(name: str, **options: Any) -> Callable[[], Any]:
    """Return what makes a model: `package:Class`."""

    def make() -> Any:
        package, _, cls = name.partition(":")
        return getattr(__import__(package, fromlist=[cls]), cls)(**options)

    return make


class Case(NamedTuple):
    """A model, and how near its scores come."""

    make: Callable[[], Any]
    targets: tuple[str, ...] = ("two", "three")
    tolerance: float = 1e-5


_TREES = {"n_estimators": 4, "max_depth": 3, "random_state": 0}
_NUMBERS = ("numbers",)
CASES = {
    "sklearn forest": Case(fitted("sklearn.ensemble:RandomForestClassifier", **_TREES)),
    "sklearn extra trees": Case(fitted("sklearn.ensemble:ExtraTreesClassifier", **_TREES)),
    "sklearn boosting": Case(fitted("sklearn.ensemble:GradientBoostingClassifier", **_TREES)),
    "sklearn tree": Case(fitted("sklearn.tree:DecisionTreeClassifier", max_depth=3)),
    "sklearn logistic": Case(fitted("sklearn.linear_model:LogisticRegression")),
    "sklearn neighbours": Case(fitted("sklearn.neighbors:KNeighborsClassifier", n_neighbors=3)),
    "sklearn bayes": Case(fitted("sklearn.naive_bayes:GaussianNB")),
    "sklearn network": Case(
        fitted("sklearn.neural_network:MLPClassifier", hidden_layer_sizes=(4,), max_iter=30)
    ),
    "xgboost": Case(fitted("xgboost:XGBClassifier", **_TREES)),
    "lightgbm": Case(fitted("lightgbm:LGBMClassifier", **_TREES, verbose=-1)),
    "sklearn linear numbers": Case(fitted("sklearn.linear_model:LinearRegression"), _NUMBERS),
    "sklearn forest numbers": Case(
        fitted("sklearn.ensemble:RandomForestRegressor", **_TREES), _NUMBERS
    ),
    "xgboost numbers": Case(fitted("xgboost:XGBRegressor", **_TREES), _NUMBERS),
    "lightgbm numbers": Case(fitted("lightgbm:LGBMRegressor", **_TREES, verbose=-1), _NUMBERS),
}
PAIRS = [(name, target) for name, case in CASES.items() for target in case.targets]


def exported(model: Any, *, has_zipmap: bool | None = None) -> onnx.ModelProto:
    """Return a fitted model as ONNX, with plain tensors as outputs."""
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from skl2onnx import to_onnx

    of = type(model).__module__.partition(".")[0]
    types = [("features", FloatTensorType([None, NUM_FEATURES]))]
    if of == "xgboost":
        return convert_xgboost(model, initial_types=types, target_opset=15)
    if of == "lightgbm":
        return convert_lightgbm(model, initial_types=types, target_opset=15, zipmap=False)
    has_zipmap = hasattr(model, "predict_proba") if has_zipmap is None else has_zipmap
    options = {id(model): {"zipmap": False}} if has_zipmap else None
    return to_onnx(model, X[:1], options=options)


def predictor(path: Path, **model: Any) -> TorchEngine:
    """A predictor of an .onnx file over features."""
    job = job_of(
        {"path": str(path), **model},
        {"uri": "in", "format": "parquet", "features": ["a", "b", "c", "d"]},
    )
    fields = pa.schema([pa.field("features", pa.list_(pa.float32(), NUM_FEATURES))])
    spec = resolve_model(job).fitted(fields)
    return TorchEngine(PredictorConfig(spec, 32, 0, 1, pa.schema([])))


def predictions(engine: TorchEngine, features: np.ndarray) -> list[dict[str, Any]]:
    rows = pa.table(
        {
            "row_id": [str(row) for row in range(len(features))],
            "uri": [""] * len(features),
            "features": pa.FixedSizeListArray.from_arrays(features.reshape(-1), NUM_FEATURES),
            **failure_columns([None] * len(features)),
        }
    )
    table = engine.predict(rows, {})
    assert table.column("error").null_count == len(features), table.column("message")
    return table.to_pylist()


def by_label(rows: list[dict[str, Any]]) -> np.ndarray:
    """Return the scores of each row in the order of the labels: (N, K)."""
    scores = np.zeros((len(rows), len(rows[0]["top_k"])))
    for row, prediction in enumerate(rows):
        for entry in prediction["top_k"]:
            scores[row, entry["label_id"]] = entry["score"]
    return scores


@pytest.fixture(autouse=True)
def quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about names of features and convergence
        yield


QUICK = ("sklearn forest", "sklearn logistic", "xgboost", "lightgbm", "xgboost numbers")


@pytest.mark.parametrize(
    ("name", "target"),
    quick_cases(PAIRS, lambda name, target: name in QUICK and target != "two"),
)
def test_scores_are_those_of_the_library(name: str, target: str, tmp_path: Path):
    case, path = CASES[name], tmp_path / "m.onnx"
    are_texts = target == "three" and name.startswith("sklearn")
    model = case.make().fit(X, TEXTS[TARGETS[target]] if are_texts else TARGETS[target])
    onnx.save(exported(model), path)
    if target == "numbers":
        rows = predictions(predictor(path, task="regress"), X)
        expected = model.predict(X)
        np.testing.assert_allclose([row["value"] for row in rows], expected, atol=case.tolerance)
        return
    expected = model.predict_proba(X)
    labels = [f"class {label}" for label in model.classes_]
    rows = predictions(predictor(path, task="classify", labels=labels), X)
    np.testing.assert_allclose(by_label(rows), expected, atol=case.tolerance)
    [best] = np.asarray(expected).argmax(axis=1)[None]
    assert np.mean([row["label"] == labels[i] for row, i in zip(rows, best, strict=True)]) > 0.98


def test_decision_values_whose_name_says_probabilities_are_logits_if_the_job_says_it(
    tmp_path: Path,
):
    from sklearn.svm import SVC

    model = SVC().fit(X, TARGETS["three"])
    onnx.save(exported(model, has_zipmap=True), tmp_path / "m.onnx")
    job = {"task": "classify", "labels": ["a", "b", "c"]}
    with pytest.raises(JobError, match=r"row 0 are no probabilities, .* write 'logits'"):
        predictions(predictor(tmp_path / "m.onnx", **job), X)
    rows = predictions(predictor(tmp_path / "m.onnx", **job, scores="logits"), X)
    values = model.decision_function(X)
    expected = np.exp(values) / np.exp(values).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(by_label(rows), expected, atol=1e-4)
