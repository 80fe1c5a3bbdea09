"""Test that every task follows the protocol, including one of another distribution."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
import toy_package
from support.runs.jobs import job_of
from torch.overrides import TorchFunctionMode

from pipeline.core.errors import JobError
from pipeline.core.registry import TASKS, load, names
from pipeline.core.schema import GEOMETRY, HEIGHT_PX, OFFSETS, TEXT, WIDTH_PX, WORD_IDS
from pipeline.models.agreement import AgreementLimits
from pipeline.models.generate.spec import Generation, Transcription
from pipeline.models.outputs import OutputError, OutputSpec
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Task, TaskSpec

LIMITS = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)
OK = np.array([True, False, True])
DRAWN = torch.rand((3, 4), generator=torch.Generator().manual_seed(1))


NO_ROWS = pa.table({"row_id": ["0", "1", "2"]})
IMAGES = pa.table(
    {
        WIDTH_PX: pa.array([3, 4, 5], pa.int32()),
        HEIGHT_PX: pa.array([5, 4, 3], pa.int32()),
        GEOMETRY: pa.array([[0.5, 0.25, 0.0, 0.1]] * 3, pa.list_(pa.float32(), 4)),
    }
)
TEXTS = pa.table({TEXT: ["ab", "cd", "ef"], OFFSETS: [[0, 1, 1, 2]] * 3, WORD_IDS: [[0, 1]] * 3})


def as_they_are(drawn: torch.Tensor) -> Any:
    return drawn


class Case(NamedTuple):
    """A spec, and what outputs of three rows are made of."""

    spec: TaskSpec
    drawn: torch.Tensor
    """(3, ...), floats."""
    rows: pa.Table = NO_ROWS
    outputs_of: Callable[[torch.Tensor], Any] = as_they_are
    """Makes the model's outputs for the rows whose numbers it is given, (B, ...)."""


def boxes_of(drawn: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Return two detections per row, as torchvision's detectors do; (B, 4)."""
    corners = [torch.stack([row[:2], row[:2] + row[2:].abs() + 1]).reshape(1, 4) for row in drawn]
    labels = torch.arange(1, 3, device=drawn.device)
    return [
        {"boxes": box.repeat(2, 1), "scores": row[:2].abs() + 0.01, "labels": labels}
        for box, row in zip(corners, drawn, strict=True)
    ]


def written(spec: TaskSpec, results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return results as they are; in place of logits (B, 4) texts of two letters."""
    if spec.kind != "generate":
        return results
    drawn = results["logits"]
    whole = (drawn * 100).astype(int)
    texts = ["".join(chr(97 + number % 26) for number in row[:2]) for row in whole.tolist()]
    return {
        "text": np.array(texts, object),
        "record": np.full(len(texts), None, object),
        "num_input_tokens": abs(whole[:, 2]),
        "num_output_tokens": abs(whole[:, 0]) + 1,
        "finish": whole[:, 1] % 3,
        "mean_logprob": -drawn[:, 3],
    }


def frames_of(drawn: torch.Tensor) -> torch.Tensor:
    """Return two frames of four tokens per row; (B, 4)."""
    return 9 * torch.stack([drawn, drawn.flip(1)], dim=1)


def vectors_of(drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return two vectors per row; (B, 4)."""
    vectors = drawn.reshape(-1, 2, 2)
    return {"embeddings": vectors, "kept": torch.ones_like(vectors[..., 0]) > 0}


FRAMES = Transcription(("", *"abc"), "", None, " ", lowers=False, cleans=False)
CASES = {
    "classify": Case(TaskSpec("classify", labels=("a", "b", "c", "d"), top_k=2), DRAWN),
    "multilabel": Case(TaskSpec("multilabel", labels=("a", "b", "c", "d")), DRAWN - 0.3),
    "embed": Case(TaskSpec("embed", embedding_dim=4), DRAWN),
    "sparse": Case(TaskSpec("sparse"), DRAWN),
    "multi_vector": Case(TaskSpec("multi_vector", embedding_dim=2), DRAWN, outputs_of=vectors_of),
    "regress": Case(TaskSpec("regress", targets=("w", "x", "y", "z")), DRAWN),
    "tokens": Case(TaskSpec("tokens", labels=("X", "Y")), DRAWN.reshape(3, 2, 2), TEXTS),
    "zero_shot": Case(
        TaskSpec("zero_shot", labels=("a", "b", "c", "d"), top_k=2, prompts=("e", "f", "g", "h")),
        DRAWN,
    ),
    "choices": Case(
        TaskSpec("choices", labels=("a", "b", "c", "d"), top_k=2, prompts=("e", "f", "g", "h")),
        -DRAWN,
    ),
    "generate": Case(TaskSpec("generate", generation=Generation(8)), DRAWN),
    "transcribe": Case(TaskSpec("transcribe", transcription=FRAMES), DRAWN, outputs_of=frames_of),
    "raw": Case(TaskSpec("raw", outputs=(OutputSpec("map", (2, 2)),)), DRAWN.reshape(3, 2, 2)),
    "score": Case(TaskSpec("score"), DRAWN[:, 0]),
    "detect": Case(
        TaskSpec("detect", labels=("a", "b", "c"), min_score=0.0, max_detections=3),
        DRAWN,
        IMAGES,
        boxes_of,
    ),
    "spread": Case(TaskSpec("spread"), DRAWN),
}
ALL = pytest.mark.parametrize("name", CASES)
PIXELS = {"pixels": torch.zeros(3, 8, 8, 3)}


def queries_of(drawn: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the outputs of a transformer with two queries per row; (B, 4)."""
    boxes = drawn[:, None].repeat(1, 2, 1)
    return {"pred_boxes": boxes, "logits": boxes}


def rows_of(drawn: torch.Tensor) -> torch.Tensor:
    """Return one detection of label 2 per row in one tensor; (B, 4)."""
    boxes = torch.cat([drawn[:, :2], drawn[:, :2] + drawn[:, 2:].abs() + 1], dim=1)
    scores = drawn[:, :1].abs()
    return torch.cat([boxes, scores, torch.full_like(scores, 2)], dim=1)[:, None]


def _detect(**settings: Any) -> TaskSpec:
    return TaskSpec("detect", min_score=0.1, max_detections=3, **settings)


class Outlines:
    """Post-processing: lists of any length, texts and numbers, of which one is never known."""

    schema = pa.schema(
        [
            ("name", pa.string()),
            ("places", pa.list_(pa.struct([("x", pa.float32()), ("at", pa.int64())]))),
            ("most", pa.float64()),
            ("never", pa.float32()),
        ]
    )

    def __call__(self, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        values = outputs["map"]
        return {
            "name": [f"row {len(row)}" for row in values],
            "places": [
                [{"x": x, "at": at} for at, x in enumerate(row.tolist()) if x > 0.2]
                for row in values
            ],
            "most": values.max(axis=1),
            "never": np.full(len(values), np.nan, np.float32),
        }


OTHERS = {
    "embed at length 1": Case(TaskSpec("embed", embedding_dim=4, l2_norm=True), DRAWN),
    "embed in float16": Case(TaskSpec("embed", embedding_dim=4, embedding_type="float16"), DRAWN),
    "raw with columns of its own": Case(
        TaskSpec("raw", outputs=(OutputSpec("map", (4,)),), postprocess=f"{__name__}:Outlines"),
        DRAWN,
    ),
    "classify, one label": Case(TaskSpec("classify", labels=("a", "b", "c", "d"), top_k=1), DRAWN),
    "classify, scores open": Case(
        TaskSpec("classify", labels=("a", "b", "c", "d"), scores="open"), DRAWN
    ),
    "detect with suppression": Case(
        _detect(labels=("a", "b", "c"), nms_iou=0.5), DRAWN, IMAGES, boxes_of
    ),
    "detect, logits of labels": Case(
        _detect(labels=("a", "b", "c", "d"), nms_iou=0.5), DRAWN, IMAGES, queries_of
    ),
    "detect, places of one tensor": Case(
        _detect(labels=("a", "b", "c", "d"), head="places", nms_iou=0.5),
        DRAWN,
        IMAGES,
        lambda drawn: drawn.abs().repeat(1, 2)[..., None],
    ),
    "detect, rows of one tensor": Case(
        _detect(labels=("a", "b", "c"), head="rows"), DRAWN, IMAGES, rows_of
    ),
    "detect, logits of nothing too": Case(
        _detect(labels=("a", "b", "c")), DRAWN, IMAGES, queries_of
    ),
}
"""Other ways through the same tasks."""
PUBLISHED = pytest.mark.parametrize("case", [*CASES, *OTHERS])


class Waits(TorchFunctionMode):
    """Notes what makes a tensor of numbers of the host: such a copy waits for the device."""

    copies = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.copies:
            self.names.append(func.__name__)
        return func(*args, **kwargs or {})


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = {"pipeline.tasks": {"spread": "toy_task:Spread", "broken": "toy_task:no_such_thing"}}
    monkeypatch.syspath_prepend(toy_package.install(tmp_path / "site", points))


def kept(name: str, drawn: torch.Tensor) -> dict[str, np.ndarray]:
    outputs = CASES[name].outputs_of(drawn)
    reduced = make_task(CASES[name].spec).reduce(outputs, len(drawn))
    return written(CASES[name].spec, {name: tensor.numpy() for name, tensor in reduced.items()})


def predicted(name: str) -> tuple[Task, pa.Table]:
    task = make_task(CASES[name].spec)
    arrays = kept(name, CASES[name].drawn)
    return task, pa.table(task.columns(arrays, np.ones(3, bool), CASES[name].rows))


def test_every_task_has_a_case():
    assert set(CASES) | {"broken"} == set(names(TASKS))


@ALL
def test_it_gives_the_columns_that_it_declares_and_nulls_for_rows_that_failed(name: str):
    task = make_task(CASES[name].spec)
    columns = task.columns(kept(name, CASES[name].drawn), OK, CASES[name].rows)
    assert [(f.name, f.type) for f in task.fields()] == [(n, c.type) for n, c in columns.items()]
    for column in columns.values():
        column.validate(full=True)
        assert column.is_valid().to_pylist() == OK.tolist()
    assert {*task.measured_columns()} <= {*columns}


@ALL
def test_rows_keep_their_order(name: str):
    task, table = predicted(name)
    turned, rows = kept(name, CASES[name].drawn[[2, 0, 1]]), CASES[name].rows.take([2, 0, 1])
    assert pa.table(task.columns(turned, np.ones(3, bool), rows)).equals(table.take([2, 0, 1]))


@ALL
def test_outputs_that_do_not_fit_are_no_rows_fault(name: str):
    with pytest.raises(OutputError):
        make_task(CASES[name].spec).reduce("no tensor", 3)


@PUBLISHED
def test_a_batch_is_reduced_without_waiting_for_the_device(case: str):
    """Tensors of device `meta` have no values: to ask for one raises."""
    spec, drawn, _, outputs_of = {**CASES, **OTHERS}[case]
    batch = {"pixels": torch.zeros(3, 8, 8, 3, device="meta")}
    outputs = outputs_of(drawn.to("meta"))
    with Waits() as waits:
        reduced = make_task(spec).reduce_batch(outputs, 3, batch)
    assert not waits.names
    assert {(values.device.type, len(values)) for values in reduced.values()} == {("meta", 3)}


@ALL
def test_predictions_agree_with_themselves_and_not_with_others(name: str):
    task = make_task(CASES[name].spec)
    arrays = kept(name, CASES[name].drawn)
    assert task.compare(arrays, arrays, LIMITS).agrees.all()
    drawn = CASES[name].drawn
    factors = torch.tensor([-9.0, 5.0, -3.0, 7.0])[: drawn[0].numel()].view(drawn.shape[1:])
    others = kept(name, drawn * factors)
    assert not task.compare(arrays, others, LIMITS).agrees.all()


@PUBLISHED
@pytest.mark.parametrize("allows_ties", [False, True])
def test_published_rows_agree_within_rounding_and_others_are_told(case: str, allows_ties: bool):
    spec, drawn, rows, outputs_of = {**CASES, **OTHERS}[case]
    task, limits = make_task(spec), replace(LIMITS, allows_ties=allows_ties)

    def published(values: torch.Tensor) -> pa.Table:
        reduced = task.reduce_batch(outputs_of(values), 3, PIXELS)
        arrays = written(spec, {name: tensor.numpy() for name, tensor in reduced.items()})
        return pa.table(task.columns(arrays, np.ones(3, bool), rows))

    known = published(drawn)
    assert task.differences(known, known, limits) == [""] * 3
    assert task.differences(known, published(drawn * (1 + 1e-5)), limits) == [""] * 3
    assert task.differences(known[:0], known[:0], limits) == []
    factors = torch.tensor([-9.0, 5.0, -3.0, 7.0])[: drawn[0].numel()].view(drawn.shape[1:])
    mixed = torch.stack([drawn[0] * factors, drawn[1], drawn[2]])
    differs, *agree = task.differences(known, published(mixed), limits)
    assert agree == ["", ""]
    assert "expected " in differs
    assert differs.isprintable()


@ALL
def test_its_own_predictions_are_golden_rows_that_do_not_differ(name: str):
    task, table = predicted(name)
    if not task.has_golden:
        return
    names = [task.golden_names.get(column, column) for column in table.column_names]
    assert set(task.golden_columns()) <= set(names)
    expected = task.parse_golden(table.rename_columns(names))
    assert set(expected.column_names) <= set(table.column_names)
    assert task.differences(expected, table, LIMITS) == ["", "", ""]
    assert any(task.differences(expected, table.take([1, 2, 0]), LIMITS))


@ALL
def test_it_is_plain_enough_for_a_manifest_and_described_in_a_line(name: str):
    task, table = predicted(name)
    assert json.loads(json.dumps(task.spec.to_dict()))["kind"] == name
    text = task.describe(table.to_pylist()[0])
    assert text
    assert "\n" not in text


def test_a_broken_task_of_another_distribution_is_one_line_that_names_it():
    with pytest.raises(JobError, match=r"'broken': toy_task:no_such_thing of toys 1\.0 cannot"):
        load(TASKS, "broken")


def test_an_unknown_task_is_one_line_with_those_that_there_are():
    with pytest.raises(JobError, match=r"'raw', 'broken' or 'spread', did you mean spread\?"):
        job_of({"name": "alexnet", "weights": "w.pth", "task": "spreads"})
