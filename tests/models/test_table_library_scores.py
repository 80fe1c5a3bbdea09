"""Test that scores of models over tables are those of the library that fitted them.

Each row of `CASES` is a model of scikit-learn, XGBoost or LightGBM, fitted on few rows, exported to
ONNX as its library does it with `zipmap=False`, and predicted by the pipeline. Trees and linear
models compute float32 where their library computes float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.models.library_cases import (
    FEATURES,
    Case,
    Results,
    best,
    published,
    require_scores_of_the_library,
)
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError

_SUM = FEATURES @ np.array([1.0, 0.5, -0.7, 0.2])
TARGETS = {
    "two": (_SUM > 0).astype(int),
    "three": np.digitize(_SUM, [-0.6, 0.6]),
    "texts": np.array(["low", "middle", "high"])[np.digitize(_SUM, [-0.6, 0.6])],
    "numbers": _SUM,
}
LABELS = ("a", "b", "c")


def fitted(name: str, target: str, scores: str = "predict_proba", **options: Any) -> Case:
    """Return the case of a model, `package:Class`, whose method `scores` gives those of labels."""
    package, _, cls = name.partition(":")

    @cache
    def model() -> Any:
        return getattr(import_module(package), cls)(**options).fit(FEATURES, TARGETS[target])

    def make(folder: Path) -> Path:
        folder.mkdir()
        onnx.save(exported(model()), folder / "m.onnx")
        return folder / "m.onnx"

    def of_library(_: Path, rows: Any) -> Results:
        if target == "numbers":
            return [[number] for number in model().predict(rows).tolist()]
        return [dict(zip(LABELS, row, strict=False)) for row in getattr(model(), scores)(rows)]

    if target == "numbers":
        columns: Callable[[dict[str, Any]], Any] = lambda row: [row["value"]]  # noqa: E731
        return Case(make, of_library, columns, {"task": "regress"}, "features")
    job = {"task": "classify", "labels": LABELS[: 2 if target == "two" else 3]}
    return Case(make, of_library, best, job, "features")


def exported(model: Any) -> onnx.ModelProto:
    """Return a fitted model as ONNX, with plain tensors as outputs."""
    from onnxmltools import convert_lightgbm, convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType
    from skl2onnx import to_onnx
    from sklearn.base import is_classifier

    of = type(model).__module__.partition(".")[0]
    types = [("features", FloatTensorType([None, FEATURES.shape[1]]))]
    if of == "xgboost":
        return convert_xgboost(model, initial_types=types, target_opset=15)
    if of == "lightgbm":
        return convert_lightgbm(model, initial_types=types, target_opset=15, zipmap=False)
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    return to_onnx(model, FEATURES[:1], options=options)


_TREES = {"n_estimators": 4, "max_depth": 3, "random_state": 0}
MODELS: dict[str, dict[str, Any]] = {
    "sklearn.ensemble:RandomForestClassifier": _TREES,
    "sklearn.ensemble:ExtraTreesClassifier": _TREES,
    "sklearn.ensemble:GradientBoostingClassifier": _TREES,
    "sklearn.tree:DecisionTreeClassifier": {"max_depth": 3},
    "sklearn.linear_model:LogisticRegression": {},
    "sklearn.neighbors:KNeighborsClassifier": {"n_neighbors": 3},
    "sklearn.naive_bayes:GaussianNB": {},
    "sklearn.neural_network:MLPClassifier": {"hidden_layer_sizes": (4,), "max_iter": 30},
    "xgboost:XGBClassifier": _TREES,
    "lightgbm:LGBMClassifier": {**_TREES, "verbose": -1},
    "sklearn.linear_model:LinearRegression": {},
    "sklearn.ensemble:RandomForestRegressor": _TREES,
    "xgboost:XGBRegressor": _TREES,
    "lightgbm:LGBMRegressor": {**_TREES, "verbose": -1},
}


def targets_of(name: str) -> tuple[str, ...]:
    if "Regress" in name and "Logistic" not in name:
        return ("numbers",)
    return ("two", "texts" if name.startswith("sklearn") else "three")


CASES = {
    (name, target): fitted(name, target, **options)
    for name, options in MODELS.items()
    for target in targets_of(name)
}
QUICK = ("RandomForestClassifier", "LogisticRegression", "XGBClassifier", "LGBMClassifier",
         "XGBRegressor")  # fmt: skip


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about names of features and convergence
        yield


@pytest.mark.parametrize(
    ("name", "target"),
    quick_cases(CASES, lambda name, target: name.endswith(QUICK) and target != "two"),
)
def test_scores_are_those_of_the_library(name: str, target: str, tmp_path: Path):
    require_scores_of_the_library(CASES[name, target], tmp_path / "model")


def test_decision_values_whose_name_says_probabilities_are_logits_if_the_job_says_it(
    tmp_path: Path,
):
    case = fitted("sklearn.svm:SVC", "three", "decision_function")
    path = case.make(tmp_path / "model")
    with pytest.raises(JobError, match=r"outputs of row 0 do not .* write 'logits'"):
        published(case, path)
    rows = published(case._replace(model={**case.model, "scores": "logits"}), path)
    for ours, values in zip(rows, case.library(path, FEATURES), strict=True):
        weights = {label: np.exp(value) for label, value in values.items()}
        total = sum(weights.values())
        assert ours == pytest.approx({k: w / total for k, w in weights.items()}, abs=1e-4)
