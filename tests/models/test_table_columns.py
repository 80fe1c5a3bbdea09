"""Test models with an input per column: their scores are those of scikit-learn.

From the Parquet file to the score, by the way of a run, without Ray.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
from onnx import TensorProto, helper
from support.models.onnx_files import FLOAT, INT64, make_model, save, value
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts
from pipeline.runs.builders import make_reader, plain_predictor_config
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.sources.reader import read_slices

DOUBLE, STRING, BOOL = TensorProto.DOUBLE, TensorProto.STRING, TensorProto.BOOL
NUM_ROWS = 120
NUMBERS, TEXTS = ["age", "income"], ["plan", "city"]
CLASSES = ["no", "yes"]


def predicted(folder: Path, file: Path, features: list[Any], **more: Any) -> pa.Table:
    """Return the rows of the Parquet shards of a folder, predicted by an .onnx file without Ray."""
    source = {"uri": str(folder), "format": "parquet", "features": features}
    model = {"path": str(file), **more.pop("model", {})}
    source |= more.pop("source", {})
    job = job_of(model, source, **more, sink={"uri": str(folder.with_name("out"))})
    run = RunContext.of(job, RunOptions()).with_settled_source()
    plan, spec = prepare(run)
    engine = TorchEngine(plain_predictor_config(plan, spec, 32, 1))
    reader, batches = make_reader(run.job, plan), []
    for unit in plan.units:
        for _, _, rows in read_slices(reader, unit, {key.start for key in unit.slices()}):
            batches.append(engine.predict(rows, {}))
    return pa.concat_tables(batches)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries about names of features
        yield


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "age": rng.integers(18, 80, NUM_ROWS),
            "income": rng.normal(50_000, 12_000, NUM_ROWS),
            "plan": rng.choice(["basic", "plus", "pro"], NUM_ROWS),
            "city": rng.choice(["Bern", "Zürich", "", "Genève \0"], NUM_ROWS),
        }
    )
    chosen = (frame.age > 40) & (frame.plan != "basic")
    return frame.assign(chosen=np.array(CLASSES)[chosen.astype(int)])


def columns_model(last: Any) -> Any:
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    ready = ColumnTransformer(
        [("n", StandardScaler(), NUMBERS), ("t", OneHotEncoder(handle_unknown="ignore"), TEXTS)]
    )
    return make_pipeline(ready, last)


def exported(model: Any, folder: Path, number: str = "Float", **options: Any) -> Path:
    from skl2onnx import to_onnx
    from skl2onnx.common import data_types

    of_numbers = getattr(data_types, f"{number}TensorType")
    types = [(name, of_numbers([None, 1])) for name in NUMBERS]
    types += [(name, data_types.StringTensorType([None, 1])) for name in TEXTS]
    by_model = {id(model): options} if options else None
    return save(to_onnx(model, initial_types=types, options=by_model), folder / "m.onnx")


@pytest.mark.parametrize(
    ("last", "number", "has_zipmap"),
    [
        ("LogisticRegression", "Float", True),
        ("LogisticRegression", "Double", False),
        ("RandomForestClassifier", "Float", False),
    ],
)
def test_scores_of_numbers_and_categories_are_those_of_predict_proba(
    tmp_path: Path, table: pd.DataFrame, last: str, number: str, has_zipmap: bool
):
    from sklearn import ensemble, linear_model

    made = getattr(linear_model, last, None) or getattr(ensemble, last)
    model = columns_model(made()).fit(table, table.chosen)
    options = {} if has_zipmap else {"zipmap": False}
    path = exported(model, tmp_path, number, **options)
    table.to_parquet(tmp_path / "a.parquet")
    # The order of the job is not that of the file.
    # Of doubles the linear classifier is no operator of its own, which would have the names.
    named = {} if has_zipmap or number == "Float" else {"labels": CLASSES}
    rows = predicted(tmp_path, path, [*TEXTS, *NUMBERS], model=named)
    labels = rows.column("label").to_pylist()
    assert np.mean(np.array(labels) == model.predict(table)) > 0.99
    output = {"name": "output_probability" if has_zipmap else "probabilities", "shape": [2]}
    raw = {"task": "raw", "outputs": [output]}
    rows = predicted(tmp_path, path, [*NUMBERS, *TEXTS], model=raw)
    scores = np.array(rows.column(output["name"]).to_pylist())
    np.testing.assert_allclose(scores, model.predict_proba(table), atol=1e-5)


def test_texts_alone_are_a_model_as_well(tmp_path: Path):
    """As a vectoriser of texts before a classifier: one input of texts."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import StringTensorType
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.array(["good food", "bad food", "good wine", "a bad day", "", "good " * 500] * 5)
    # Without a locale, which lower case needs in onnxruntime.
    model = make_pipeline(TfidfVectorizer(lowercase=False), LogisticRegression())
    model.fit(texts, [0, 1, 0, 1, 1, 0] * 5)
    file = to_onnx(model, initial_types=[("body", StringTensorType([None, 1]))])
    path = save(file, tmp_path / "m.onnx")
    pd.DataFrame({"body": texts}).to_parquet(tmp_path / "a.parquet")
    rows = predicted(tmp_path, path, ["body"])
    assert rows.column("label").to_pylist() == [str(label) for label in model.predict(texts)]


def passing(*inputs: tuple[str, int, list[int | str | None]]) -> onnx.ModelProto:
    """A file that gives its inputs as one float64 vector."""
    nodes = []
    for name, _, _ in inputs:
        nodes.append(helper.make_node("Cast", [name], [f"{name}_cast"], to=DOUBLE))
        nodes.append(helper.make_node("Reshape", [f"{name}_cast", "column"], [f"{name}_one"]))
    nodes.append(helper.make_node("Concat", [f"{n}_one" for n, _, _ in inputs], ["out"], axis=1))
    column = onnx.numpy_helper.from_array(np.array([-1, 1]), "column")
    ends = [value(*args) for args in inputs], [value("out", DOUBLE, [None, len(inputs)])]
    return make_model(nodes, *ends, [column])


EVERY = passing(
    ("a", FLOAT, ["n", 1]),
    ("b", DOUBLE, ["n"]),
    ("c", INT64, ["n", 1]),
    ("d", BOOL, ["n"]),
    ("e e.e", TensorProto.INT32, [None, 1]),
)
RAW = {"model": {"task": "raw", "outputs": [{"name": "out", "shape": [5]}]}}


def test_numbers_of_each_type_reach_their_input(tmp_path: Path):
    path = save(EVERY, tmp_path / "m.onnx")
    frame = pd.DataFrame(
        {
            "e e.e": np.array([5, -5, 2**31 - 1], np.int32),
            "d": [True, False, True],
            "c": np.array([16_777_217, -3, 2**53]),
            "b": [0.1, -0.0, 1e30],
            "a": np.array([0.5, 1.5, 2.5], np.float32),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    rows = predicted(tmp_path, path, ["a", "b", "c", "d", "e e.e"], **RAW)
    assert rows.column("error").null_count == 3
    expected = frame[["a", "b", "c", "d", "e e.e"]].to_numpy(np.float64).astype(np.float32)
    np.testing.assert_array_equal(np.array(rows.column("out").to_pylist()), expected)


def test_a_number_that_is_none_of_its_type_costs_its_row(tmp_path: Path):
    path = save(passing(("c", INT64, ["n", 1]), ("d", BOOL, ["n"])), tmp_path / "m.onnx")
    frame = pd.DataFrame({"c": [1.0, 1.5, 2.0, None], "d": [1, 0, 2, 1]})
    frame.to_parquet(tmp_path / "t.parquet")
    more = {"model": {"task": "raw", "outputs": [{"name": "out", "shape": [2]}]}}
    rows = predicted(tmp_path, path, ["d", "c"], **more).to_pylist()
    assert [row["error"] for row in rows] == [None, "model_error", "model_error", "null_input"]
    assert "input 'c' takes int64, and a row has 1.5" in rows[1]["message"]
    assert "input 'd' takes bool, and a row has 2" in rows[2]["message"]
    nan = predicted(tmp_path, path, ["d", {"column": "c", "null": "nan"}], **more).to_pylist()
    assert "input 'c' takes int64, and a row has nan" in nan[3]["message"]


@pytest.mark.parametrize(
    "inputs",
    [
        [("a", FLOAT, ["n", 2]), ("b", FLOAT, ["n", 1])],
        [("a", FLOAT, ["n", None]), ("b", STRING, ["n", 1])],
        [("a", STRING, ["n", 3])],
    ],
)
def test_inputs_that_are_no_columns_are_refused(tmp_path: Path, inputs: list[Any]):
    node = helper.make_node("Shape", ["a"], ["out"])
    ends = [value(*args) for args in inputs], [value("out", INT64, None)]
    with pytest.raises(JobError, match=r"m\.onnx: takes 'a' .* or an input \(B, 1\) for each col"):
        read_onnx_facts(save(make_model([node], *ends), tmp_path / "m.onnx"))


def test_other_rows_than_columns_say_how_to_name_them(tmp_path: Path):
    path = save(passing(("a", FLOAT, ["n", 1]), ("b", STRING, ["n", 1])), tmp_path / "m.onnx")
    pd.DataFrame({"b": ["x"]}).to_parquet(tmp_path / "t.parquet")
    source = {"features": [], "text_column": "b"}
    with pytest.raises(JobError, match=r"takes columns by name: source\.features: \[a, b\]"):
        predicted(tmp_path, path, [], source=source)
