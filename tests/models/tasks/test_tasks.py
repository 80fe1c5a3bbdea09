"""Test that every task makes its declared columns, and reports outputs that do not fit."""

from __future__ import annotations

import hashlib
import importlib
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.runs.checkout import ROOT

from pipeline.core.errors import JobError
from pipeline.core.schema import CLASSIFY_FIELDS
from pipeline.job.model import Model
from pipeline.models.agreement import AgreementLimits
from pipeline.models.outputs import OutputSpec
from pipeline.models.tasks import make_task, task_class
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.tasks.raw import load_postprocess

OK = np.array([True, False, True])
EXAMPLES = ROOT / "examples" / "postprocess"


def columns_of(spec: TaskSpec, outputs: Any) -> dict[str, list[Any]]:
    """Run a task over the outputs of three rows, of which the second failed."""
    task = make_task(spec)
    arrays = {name: t.numpy() for name, t in task.reduce(outputs, 3).items()}
    columns = task.columns(arrays, OK, pa.table({"row_id": ["0", "1", "2"]}))
    assert [(f.name, f.type) for f in task.fields()] == [(n, c.type) for n, c in columns.items()]
    for column in columns.values():
        column.validate(full=True)
        assert column.is_valid().to_pylist() == OK.tolist()
    return {name: column.to_pylist() for name, column in columns.items()}


def test_classify_gives_the_best_label_and_the_top_k():
    logits = torch.tensor([[0.0, 2.0, 1.0], [9.0, 0.0, 0.0], [1.0, 0.0, 3.0]])
    columns = columns_of(TaskSpec("classify", labels=("a", "b", "c"), top_k=2), logits)
    assert (columns["label"], columns["label_id"]) == (["b", None, "c"], [1, None, 2])
    expected = torch.softmax(logits, dim=1)
    assert columns["score"][0] == pytest.approx(float(expected[0, 1]))
    assert [(e["label"], e["label_id"]) for e in columns["top_k"][2]] == [("c", 2), ("a", 0)]


def test_embed_flattens_pooled_vectors_and_normalises_on_request():
    vectors = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    plain = columns_of(TaskSpec("embed", embedding_dim=2), vectors.reshape(3, 2, 1, 1))
    assert plain["embedding"] == [[3.0, 4.0], None, [0.0, 2.0]]
    normed = columns_of(TaskSpec("embed", embedding_dim=2, l2_norm=True), vectors)
    np.testing.assert_allclose(normed["embedding"][0], [0.6, 0.8], rtol=1e-6)


@pytest.mark.parametrize("size", [1e38, 1e30, 1e19, 1.0, 1e-19, 1e-30, 1e-44])
def test_vectors_of_any_size_are_normalised_to_length_1(size: float):
    vectors = torch.tensor([[3.0, 0.0, -4.0], [1.0, 0.0, 0.0], [0.0, 0.0, 2.0]]) / 4 * size
    task = TaskSpec("embed", embedding_dim=3, l2_norm=True)
    column = columns_of(task, vectors)["embedding"]
    lengths = [sum(value**2 for value in column[row]) ** 0.5 for row in (0, 2)]
    np.testing.assert_allclose(lengths, [1.0, 1.0], rtol=1e-6)
    assert column[2] == [0.0, 0.0, 1.0]


def test_ordinary_vectors_are_normalised_as_torch_does_to_the_last_bit():
    vectors = torch.randn(200, 64, generator=torch.Generator().manual_seed(18)) * 3
    vectors[7] = 0.0
    task = make_task(TaskSpec("embed", embedding_dim=64, l2_norm=True))
    reduced = task.reduce(vectors, 200)["embedding"]
    assert torch.equal(reduced, torch.nn.functional.normalize(vectors, dim=1))
    vectors[3, 5], vectors[4, 5] = torch.inf, torch.nan
    reduced = task.reduce(vectors, 200)["embedding"]
    assert reduced.isfinite().all(dim=1).logical_not().nonzero().flatten().tolist() == [3, 4]


def test_multilabel_gives_the_labels_from_min_score_on_best_first():
    logits = torch.tensor([[0.0, 2.0, 1.0], [9.0, 0.0, 0.0], [-1.0, -2.0, -3.0]])
    column = columns_of(TaskSpec("multilabel", labels=("a", "b", "c")), logits)["labels"]
    assert [(entry["label"], entry["label_id"]) for entry in column[0]] == [
        ("b", 1), ("c", 2), ("a", 0),
    ]  # fmt: skip
    assert [entry["score"] for entry in column[0]] == torch.sigmoid(logits[0, [1, 2, 0]]).tolist()
    assert column[1:] == [None, []]
    strict = TaskSpec("multilabel", labels=("a", "b", "c"), min_score=0.8)
    assert [entry["label"] for entry in columns_of(strict, logits)["labels"][0]] == ["b"]


def test_golden_labels_may_be_texts_alone():
    task = make_task(TaskSpec("multilabel", labels=("a", "b", "c"), min_score=0.5))
    expected = task.parse_golden(pa.table({"labels": [["a"], ["b", "a"], ["a", "z"], []]}))
    limits = AgreementLimits(0.05, 1.0, 0.0)
    assert task.differences(expected, labelled([{"a": 0.9, "c": 0.52}] * 4), limits) == [
        "",
        "expected 'b', found none",
        "expected 'z', which is no label of the model",
        "expected no 'a', found 0.9000",
    ]
    scored = [{"label": "a", "label_id": 0, "score": 0.9}, {"label": "b", "label_id": 1,
              "score": 0.52}]  # fmt: skip
    expected = task.parse_golden(pa.table({"labels": [scored]}))
    assert task.differences(expected, labelled([{"a": 0.8}]), limits) == [
        "expected 'a' 0.9000, found 0.8000"
    ]


def labelled(rows: list[dict[str, float]]) -> pa.Table:
    """Published rows of task multilabel, each label -> score."""
    entries = [[{"label": label, "score": score} for label, score in row.items()] for row in rows]
    return pa.table({"labels": entries})


def classified(*tops: dict[str, float], **first: Any) -> pa.Table:
    """Published rows of task classify, each with its `top_k`; `first` overrides the best."""
    rows = []
    for top in tops:
        entries = [{"label": n, "label_id": "abc".index(n), "score": s} for n, s in top.items()]
        rows.append({**entries[0], **first, "top_k": entries})
    return pa.Table.from_pylist(rows, pa.schema(CLASSIFY_FIELDS))


@pytest.mark.parametrize(
    ("top_k", "known", "actual", "agrees"),
    [
        (2, {"a": 0.41, "b": 0.4}, {"b": 0.41, "a": 0.4}, True),
        (2, {"a": 0.41, "b": 0.4}, {"a": 0.41, "c": 0.4}, False),
        (2, {"a": 0.4, "b": 0.31}, {"a": 0.4, "c": 0.3}, True),
        (2, {"a": 0.8, "b": 0.1}, {"b": 0.8, "a": 0.1}, False),
        (1, {"a": 0.5}, {"b": 0.49}, True),
        (1, {"a": 0.9}, {"b": 0.9}, False),
        (1, {"a": 0.9}, {"a": 0.8}, False),
        (3, {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.5, "c": 0.26, "b": 0.24}, False),
    ],
)
def test_of_two_labels_that_are_about_as_likely_either_may_be_the_best(
    top_k: int, known: dict[str, float], actual: dict[str, float], agrees: bool
):
    task = make_task(TaskSpec("classify", labels=("a", "b", "c"), top_k=top_k))
    sides, limits = (classified(known), classified(actual)), AgreementLimits(0.02, 1.0, 0.0)
    [difference] = task.differences(*sides, replace(limits, allows_ties=True))
    assert (difference == "") == agrees
    [strict] = task.differences(*sides, limits)
    assert strict or next(iter(known)) == next(iter(actual))


def test_of_sigmoid_scores_a_label_that_is_not_listed_may_have_as_much_as_the_least():
    task = make_task(TaskSpec("classify", labels=("a", "b"), top_k=1, scores="sigmoid"))
    limits = AgreementLimits(0.02, 1.0, 0.0, allows_ties=True)
    sides = classified({"a": 0.9}, {"a": 0.9}), classified({"b": 0.9}, {"b": 0.95})
    assert [difference == "" for difference in task.differences(*sides, limits)] == [True, False]


@pytest.mark.parametrize(
    "altered", [{"label": "b"}, {"label_id": 2}, {"score": 0.5}, {"score": None}]
)
def test_an_altered_value_of_a_published_row_is_found_by_its_sample(altered: dict[str, Any]):
    task = make_task(TaskSpec("classify", labels=("a", "b", "c"), top_k=2))
    limits = AgreementLimits(0.05, 1.0, 0.0, allows_ties=True)
    good = classified({"a": 0.6, "b": 0.3})
    assert task.differences(good, good, limits) == [""]
    for pair in (
        (classified({"a": 0.6, "b": 0.3}, **altered), good),
        (good, classified({"a": 0.6, "b": 0.3}, **altered)),
    ):
        assert task.differences(*pair, limits) != [""]


def test_score_gives_one_number_and_takes_the_activation_of_the_model():
    logits = torch.tensor([[-3.0], [0.0], [2.0]])
    assert columns_of(TaskSpec("score"), logits) == {"score": [-3.0, None, 2.0]}
    assert columns_of(TaskSpec("score"), logits[:, 0]) == {"score": [-3.0, None, 2.0]}
    sigmoid = columns_of(TaskSpec("score", activation="sigmoid"), logits)["score"]
    assert sigmoid == [float(torch.sigmoid(logits[0, 0])), None, float(torch.sigmoid(logits[2, 0]))]


@pytest.mark.parametrize(
    "spec",
    [TaskSpec("score", activation="sigmoid"), TaskSpec("multilabel", labels=("a",), min_score=0.1)],
)
def test_an_infinite_logit_is_no_probability(spec: TaskSpec):
    logits = torch.tensor([[torch.inf], [torch.nan], [1.0]])
    scores = make_task(spec).reduce(logits, 3)["score"].flatten()
    assert scores.isfinite().tolist() == [False, False, True]


def test_embeddings_of_float16_are_halves_and_too_large_ones_are_not_finite():
    vectors = torch.tensor([[0.1, 2.0], [1e5, 0.0], [0.5, -3.0]])
    spec = TaskSpec("embed", embedding_dim=2, embedding_type="float16")
    task = make_task(spec)
    assert task.fields()[0].type == pa.list_(pa.float16(), 2)
    reduced = task.reduce(vectors, 3)["embedding"]
    assert (reduced.dtype, reduced.isfinite().all(dim=1).tolist()) == (
        torch.float16, [True, False, True],
    )  # fmt: skip
    column = columns_of(spec, vectors)["embedding"]
    assert column == [[float(np.float16(0.1)), 2.0], None, [0.5, -3.0]]
    part = io.BytesIO()
    table = pa.table(task.columns({"embedding": reduced.numpy()}, OK, pa.table({})))
    pq.write_table(table, part)
    assert pq.read_table(part).equals(table)


def test_fields_with_their_defaults_are_in_no_fingerprint_so_that_new_ones_change_none():
    plain = {
        "kind": "embed", "embedding_dim": 3, "num_labels": 0,
        "labels_sha256": hashlib.sha256(b"").hexdigest(), "postprocess_args": {},
    }  # fmt: skip
    assert TaskSpec("embed", embedding_dim=3).to_dict() == plain
    half = TaskSpec("embed", embedding_dim=3, embedding_type="float16").to_dict()
    assert half == {**plain, "embedding_type": "float16"}
    assert TaskSpec("embed", embedding_dim=3, min_score=0.0).to_dict() == {
        **plain,
        "min_score": 0.0,
    }
    assert TaskSpec("embed", embedding_dim=3, scores="open").to_dict() == plain
    sigmoid = TaskSpec("embed", embedding_dim=3, scores="sigmoid").to_dict()
    assert sigmoid == {**plain, "scores": "sigmoid"}


def test_regress_gives_a_column_a_target():
    assert columns_of(TaskSpec("regress"), torch.tensor([1.0, 2.0, 3.0])) == {
        "value": [1.0, None, 3.0]
    }
    both = columns_of(TaskSpec("regress", targets=("x", "y")), torch.arange(6.0).reshape(3, 2))
    assert both == {"x": [0.0, None, 4.0], "y": [1.0, None, 5.0]}


def test_raw_keeps_shapes_and_takes_outputs_by_name_or_position():
    outputs = (OutputSpec("scalar", ()), OutputSpec("grid", (2, 3)))
    tensors = {"grid": torch.arange(18.0).reshape(3, 2, 3), "scalar": torch.arange(3.0), "z": 1}
    by_name = columns_of(TaskSpec("raw", outputs=outputs), tensors)
    assert by_name["grid"][2] == [[12.0, 13.0, 14.0], [15.0, 16.0, 17.0]]
    assert by_name["scalar"] == [0.0, None, 2.0]
    by_place = columns_of(TaskSpec("raw", outputs=outputs), (tensors["scalar"], tensors["grid"]))
    assert by_place == by_name


@pytest.mark.parametrize(
    ("spec", "outputs", "words"),
    [
        (TaskSpec("classify", labels=("a",), top_k=1), torch.zeros(3, 2), r"\(3, 2\).*\(3, 1\)"),
        (TaskSpec("embed", embedding_dim=4), torch.zeros(3, 5), r"\(3, 5\).*\(3, 4\)"),
        (TaskSpec("regress"), torch.zeros(3, 2), r"\(3, 2\).*\(3, 1\)"),
        (TaskSpec("raw", outputs=(OutputSpec("a", ()),)), {"b": torch.zeros(3)}, "no output 'a'"),
        (TaskSpec("raw", outputs=(OutputSpec("a", (2,)),)), "text", "str"),
    ],
)
def test_outputs_of_another_shape_are_named_with_both_shapes(
    spec: TaskSpec, outputs: Any, words: str
):
    with pytest.raises(ValueError, match=words):
        make_task(spec).reduce(outputs, 3)


def test_the_example_of_masks_gives_pngs_and_run_lengths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    task = make_task(
        TaskSpec(
            "raw",
            outputs=(OutputSpec("mask", (5, 4)),),
            postprocess="masks:Masks",
            postprocess_args={"class_id": 2},
        )
    )
    maps = np.random.default_rng(0).integers(0, 3, (3, 5, 4))
    maps[0], maps[2] = 2, 0
    columns = task.columns({"mask": maps.astype(np.float32)}, OK, pa.table({}))
    assert [field.name for field in task.fields()] == ["mask", "counts"]
    [whole, none, empty] = columns["counts"].to_pylist()
    assert (whole, none, empty) == ([0, 20], None, [20])
    [png, none, _] = columns["mask"].to_pylist()
    assert none is None
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(png))), maps[0])
    made = load_postprocess("masks:Masks", {"class_id": 2})({"mask": maps[1:2]})
    ones = np.repeat(np.arange(len(made["counts"][0])) % 2, made["counts"][0])
    assert np.array_equal(ones.reshape(4, 5).T, maps[1] == 2)


def test_the_example_of_points_gives_lists_of_any_length(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    outputs = (OutputSpec("heat", (6, 8)),)
    task = make_task(TaskSpec("raw", outputs=outputs, postprocess="points:Points"))
    heat = np.zeros((3, 6, 8), np.float32)
    heat[0, 2, 3], heat[0, 2, 4], heat[0, 5, 7] = 0.75, 0.625, 1.0
    columns = task.columns({"heat": heat}, OK, pa.table({}))
    assert columns["points"].to_pylist() == [
        [{"x": 3, "y": 2, "score": 0.75}, {"x": 7, "y": 5, "score": 1.0}],
        None,
        [],
    ]


def test_a_postprocess_is_built_once_for_all_slices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "counted_step.py").write_text(
        "import pyarrow as pa\nBUILT = []\n"
        "class Step:\n"
        "    schema = pa.schema({'n': pa.float32()})\n"
        "    def __init__(self): BUILT.append(1)\n"
        "    def __call__(self, outputs): return {'n': outputs['heat'][:, 0]}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    outputs = (OutputSpec("heat", (1,)),)
    task = make_task(TaskSpec("raw", outputs=outputs, postprocess="counted_step:Step"))
    for _ in range(2):
        assert [field.name for field in task.fields()] == ["n"]
        columns = task.columns({"heat": np.ones((3, 1), np.float32)}, OK, pa.table({}))
        assert columns["n"].to_pylist() == [1.0, None, 1.0]
    assert importlib.import_module("counted_step").BUILT == [1]


def test_a_postprocess_that_raises_is_an_error_of_the_job_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = (EXAMPLES / "points.py").read_text().replace('outputs["heat"]', 'outputs["glow"]')
    (tmp_path / "glowing_step.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    outputs = (OutputSpec("heat", (6, 8)),)
    task = make_task(TaskSpec("raw", outputs=outputs, postprocess="glowing_step:Points"))
    with pytest.raises(JobError, match=r"glowing_step:Points.*'glow'.*glowing_step.py line"):
        task.columns({"heat": np.zeros((3, 6, 8), np.float32)}, OK, pa.table({}))


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("wants_outputs", "missing a required argument: 'outputs', with those of model.postproc"),
        ("raises", "failed: OSError: no licence (models.py line "),
        ("no_schema", "must return an object with .schema (pyarrow) and __call__(outputs); see "
         "jobs/README.md, Postprocess; it returned a function"),
        ("LABELS", "has no callable LABELS"),
    ],
)  # fmt: skip
def test_a_postprocess_that_breaks_its_contract_is_refused_with_the_contract(
    factory: str, words: str
):
    with pytest.raises(JobError) as caught:
        load_postprocess(f"models:{factory}", {})
    assert "model.postprocess" in str(caught.value)
    assert f"models:{factory}" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(("task", "field"), [("choices", "choices"), ("zero_shot", "prompts")])
def test_labels_are_the_texts_of_the_job_or_what_stands_for_them(task: str, field: str):
    asked = {"prompt": "Is it? {text}"} if task == "choices" else {}
    for texts, labels in ((("yes", "no"), ("yes", "no")), ({"a": "yes", "b": "no"}, ("a", "b"))):
        model = Model(path="m", task=task, **{field: texts}, **asked)
        assert task_class(task).job_labels(model) == labels
