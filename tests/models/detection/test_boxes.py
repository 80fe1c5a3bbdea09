"""Test boxes: suppression as torchvision's, the best of many, agreement of two sets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms, box_convert

from pipeline.models.agreement import AgreementLimits
from pipeline.models.detection import boxes as boxes_module
from pipeline.models.detection.box_agreement import Detections, compare, match
from pipeline.models.detection.boxes import Candidates, best, candidates, corners
from pipeline.models.outputs import OutputError
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Task, TaskSpec

LIMITS = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)
SEEDED = torch.Generator().manual_seed(4)


def drawn(num_rows: int, count: int) -> Candidates:
    centres = torch.rand(num_rows, count, 4, generator=SEEDED) * 50 + 5
    scores = torch.rand(num_rows, count, generator=SEEDED)
    label_ids = torch.randint(0, 3, (num_rows, count), generator=SEEDED)
    return Candidates(corners(centres), scores, label_ids)


def test_corners_are_those_of_torchvision():
    boxes = torch.rand(5, 7, 4, generator=SEEDED)
    expected = box_convert(boxes, "cxcywh", "xyxy")
    torch.testing.assert_close(corners(boxes), expected, atol=1e-6, rtol=0)


@pytest.fixture(params=["on the host", "on a device"])
def anywhere(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the way of a device, which is not asked for values, with values on the host."""
    if request.param == "on a device":
        monkeypatch.setattr(boxes_module, "is_on_host", lambda values: False)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("iou", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("most", [4, 200])
def test_suppression_keeps_what_torchvision_keeps(iou: float, most: int):
    candidates = drawn(5, 120)
    boxes, scores, label_ids = best(candidates, 0.2, most, iou)
    for row in range(5):
        counts = candidates.scores[row] >= 0.2
        group = [values[row][counts] for values in candidates[:3]]
        kept = batched_nms(*group, iou)[:most]
        assert torch.equal(boxes[row, : len(kept)], group[0][kept])
        assert torch.equal(scores[row, : len(kept)], group[1][kept])
        assert torch.equal(label_ids[row, : len(kept)].long(), group[2][kept])
        assert not scores[row, len(kept) :].any()


def test_boxes_that_overlap_by_exactly_the_limit_both_stay():
    halves = torch.tensor([[[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0]]])
    candidates = Candidates(halves, torch.tensor([[0.9, 0.8]]), torch.zeros(1, 2, dtype=torch.long))
    assert [best(candidates, 0.2, 2, iou)[1].count_nonzero() for iou in (0.5, 0.499)] == [2, 1]


def test_without_suppression_the_best_stay_in_order_and_zeros_follow():
    candidates = drawn(3, 9)
    boxes, scores, label_ids = best(candidates, 0.5, 12, None)
    assert (boxes.shape, scores.shape, label_ids.dtype) == ((3, 12, 4), (3, 12), torch.int32)
    for row in range(3):
        wanted = candidates.scores[row][candidates.scores[row] >= 0.5].sort(descending=True).values
        assert torch.equal(scores[row][: len(wanted)], wanted)
        assert not scores[row][len(wanted) :].any()
        assert not boxes[row][len(wanted) :].any()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("nms_iou", [None, 0.5])
def test_a_gpu_is_asked_for_nothing_and_finds_the_same(nms_iou: float | None):
    candidates = drawn(5, 120)
    expected = best(candidates, 0.2, 30, nms_iou)
    on_gpu = Candidates(*(values.cuda() for values in candidates[:3]))
    torch.cuda.set_sync_debug_mode("error")
    try:
        results = best(on_gpu, 0.2, 30, nms_iou)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for mine, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize("nms_iou", [None, 0.5])
def test_a_score_that_is_no_number_stays_and_rows_without_boxes_are_empty(nms_iou: float | None):
    candidates = drawn(2, 5)
    candidates.scores[0, 3], candidates.scores[1] = torch.nan, 0.0
    _, scores, _ = best(candidates, 0.99, 2, nms_iou)
    assert scores[0].isnan().any()
    assert not scores[1].any()
    none = Candidates(torch.zeros(2, 0, 4), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long))
    assert [tensor.shape for tensor in best(none, 0.5, 3, nms_iou)] == [(2, 3, 4), (2, 3), (2, 3)]


BOXES, SCORES = torch.rand(2, 3, 4), torch.rand(2, 3)
WRONG = {
    "a tensor": (BOXES, "output is (2, 3, 4); expected per row a dict"),
    "too few dicts": ([{}], "output has 1 dicts for 2 rows"),
    "dicts without labels": ([{"boxes": BOXES[0], "scores": SCORES[0]}] * 2, "no labels"),
    "no label ids": ({"boxes": BOXES, "scores": SCORES}, "the outputs are boxes, scores; expected"),
    "other scores": (
        {"boxes": BOXES, "scores": SCORES[:, :2]},
        "output is (2, 2), expected (2, 3): scores",
    ),
    "other labels": (
        {"logits": torch.rand(2, 3, 9), "pred_boxes": BOXES},
        "output is (2, 3, 9), expected (2, 3, 4): logits, one per label of model.labels",
    ),
    "other names": ({"masks": BOXES}, "the outputs are masks; expected per row"),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_outputs_are_refused_with_what_is_expected(name: str):
    outputs, words = WRONG[name]
    with pytest.raises(OutputError) as caught:
        candidates(outputs, 2, 4, (10, 10))
    assert words in str(caught.value)


def reduced(task: Task, outputs: Any, num_rows: int) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in task.reduce(outputs, num_rows).items()}


def test_a_label_without_a_name_is_refused_if_it_would_be_written():
    task = make_task(TaskSpec("detect", labels=("a", "b"), min_score=0.5))
    outputs = {
        "boxes": BOXES,
        "scores": torch.full((2, 3), 0.4),
        "label_ids": torch.full((2, 3), 7),
    }
    none = reduced(task, outputs, 2)
    task.check(none)
    assert not none["score"].any()
    seen = reduced(task, {**outputs, "scores": torch.ones(2, 3)}, 2)
    with pytest.raises(OutputError, match=r"has label 7, and model\.labels has 2, 0 to 1"):
        task.check(seen)


def test_shares_of_an_image_need_its_size():
    outputs = {"logits": torch.rand(2, 3, 4), "pred_boxes": BOXES}
    with pytest.raises(OutputError, match="the rows are no images"):
        candidates(outputs, 2, 4, None)


def some(*entries: tuple[float, float, str]) -> Detections:
    """Detections of 10 x 10 px at x, with score and label."""
    boxes = np.array([[x, 0.0, x + 10.0, 10.0] for x, _, _ in entries]).reshape(-1, 4)
    labels = np.array([label for _, _, label in entries], object)
    return Detections(boxes, np.array([score for _, score, _ in entries]), labels, 0.5)


def thin(x: float) -> Detections:
    """One detection that is a hundredth of a pixel wide."""
    box = np.array([[x, 0.0, x + 0.01, 10.0]])
    return Detections(box, np.array([0.9]), np.array(["a"], object), 0.5)


@pytest.mark.parametrize(
    ("reference", "candidate", "agrees"),
    [
        (some(), some(), True),
        (some((0, 0.9, "a")), some((0.2, 0.905, "a")), True),
        (some((0, 0.9, "a")), some((2, 0.9, "a")), False),  # overlaps by two thirds
        (thin(4.0), thin(4.2), True),  # a line of the border, in which there is next to nothing
        (thin(4.0), thin(5.0), False),
        (some((0, 0.9, "a")), some((0, 0.9, "b")), False),
        (some((0, 0.9, "a")), some((0, 0.8, "a")), False),
        (some((0, 0.9, "a"), (30, 0.505, "a")), some((0, 0.9, "a")), True),  # near min_score
        (some((0, 0.9, "a")), some((0, 0.9, "a"), (30, 0.6, "a")), False),
        (some((0, 0.9, "a"), (1, 0.9, "a")), some((1, 0.9, "a"), (0, 0.9, "a")), True),
        (some((0, np.nan, "a")), some((0, np.nan, "a")), False),
    ],
)
def test_two_sets_agree_by_overlap_label_and_score(reference, candidate, agrees):
    assert compare(reference, candidate, LIMITS)[0] is agrees


def test_each_detection_has_one_partner_at_most():
    pairs = match(some((0, 0.9, "a"), (1, 0.8, "a")), some((0, 0.9, "a")))
    assert pairs.partner.tolist() == [0, -1]
    assert not pairs.alone.any()


def test_of_a_full_list_the_last_one_may_be_another():
    full = some((0, 0.9, "a"), (30, 0.7, "a"))._replace(least=0.7)
    other = some((0, 0.9, "a"), (60, 0.705, "a"))._replace(least=0.705)
    assert compare(full, other, LIMITS)[0]
    task = make_task(TaskSpec("detect", labels=("a",), min_score=0.5, max_detections=2))
    sides = [
        {"boxes": side.boxes[None], "score": side.scores[None], "label_id": np.zeros((1, 2), int)}
        for side in (full, other)
    ]
    assert task.compare(*sides, LIMITS).agrees.tolist() == [True]


@pytest.mark.parametrize("label_id", [-1, 0, 2, 3, 4])
def test_a_label_id_of_the_model_itself_is_one_that_the_labels_have(label_id: int):
    task = make_task(TaskSpec("detect", labels=("a", "b", "c"), min_score=0.1))
    image = {
        "boxes": torch.tensor([[0.0, 0.0, 4.0, 4.0], [1.0, 1.0, 3.0, 3.0]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([1, label_id]),
    }
    detections = reduced(task, [image], 1)
    if 0 <= label_id < 3:
        task.check(detections)
        assert detections["label_id"][0, :2].tolist() == [1, label_id]
        return
    with pytest.raises(OutputError, match=f"label {label_id}, and model.labels has 3, 0 to 2"):
        task.check(detections)
