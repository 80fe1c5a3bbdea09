"""Test that .onnx files of ultralytics run by their metadata, with the boxes of a plain reading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from PIL import Image
from support.models import detectors, onnx_files
from support.models.onnx_files import save
from support.runs.checkout import ROOT

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import DirectoryFacts, ImageContract, TensorFacts
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts
from pipeline.models.directories.onnx.ultralytics import Exported, read_metadata

SIDE_PX = 64
LABELS = ("person", "bus", "cat")
CORNERS = ("x_min", "y_min", "x_max", "y_max")
PHOTOS = [
    detectors.photo(size, orientation, seed)
    for seed, (size, orientation) in enumerate([((64, 64), 1), ((64, 41), 6), ((33, 64), 3)])
]
"""The longer side is that of the model input: they are padded, and not resized."""


def facts_of(folder: Path, head: str = "places", **changes: Any) -> DirectoryFacts:
    return read_onnx_facts(save(onnx_files.yolo_model(head, **changes), folder / "m.onnx"))


def letterboxed(image: Image.Image) -> np.ndarray:
    """Return float32 (3, 64, 64) in [0, 1], the image in the middle of gray."""
    canvas = Image.new("RGB", (SIDE_PX, SIDE_PX), (114, 114, 114))
    canvas.paste(image, offset_of(image))
    return np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255


def offset_of(image: Image.Image) -> tuple[int, int]:
    return (SIDE_PX - image.width) // 2, (SIDE_PX - image.height) // 2


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = float(np.prod(sides.clip(0)))
    areas = sum(float(np.prod(box[2:] - box[:2])) for box in (one, other))
    return shared / (areas - shared)


def plain_boxes(output: np.ndarray, head: str, least: float, iou: float | None) -> list[list[Any]]:
    """Return label, score and corners in the letterbox of one image's output, best first."""
    if head == "rows":
        boxes, scores, label_ids = output[:, :4], output[:, 4], output[:, 5].astype(int)
    else:
        x, y, width, height = output[:4]
        boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        scores, label_ids = output[4:].max(axis=0), output[4:].argmax(axis=0)
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable"):
        alike = [other for other in kept if label_ids[other] == label_ids[place]]
        if scores[place] >= least and not any(
            iou is not None and overlap(boxes[other], boxes[place]) > iou for other in alike
        ):
            kept.append(int(place))
    return [[LABELS[label_ids[place]], scores[place], *boxes[place]] for place in kept]


@pytest.mark.parametrize(
    ("head", "fields", "least", "iou"),
    [
        ("places", {}, 0.25, 0.7),
        ("places", {"min_score": 0.6, "nms_iou": 0.2}, 0.6, 0.2),
        ("rows", {}, 0.25, None),
        ("rows", {"nms_iou": 0.3}, 0.25, 0.3),
    ],
)
@pytest.mark.parametrize("batch", [1, "batch"])
def test_a_detector_runs_without_another_field_and_gives_the_boxes_of_a_plain_reading(
    tmp_path: Path,
    head: str,
    fields: dict[str, float],
    least: float,
    iou: float | None,
    batch: int | str,
):
    path = save(onnx_files.yolo_model(head, batch=batch), tmp_path / "m.onnx")
    spec = detectors.spec_of(None, path=str(path), **{"task": None, **fields})
    assert spec.task.kind == "detect"
    session = onnxruntime.InferenceSession(path)
    rows, num_left_out = detectors.detections(spec, [data for data, _ in PHOTOS]), 0
    for row, (_, image) in zip(rows, PHOTOS, strict=True):
        [[output]] = session.run(None, {"images": letterboxed(image)[None]})
        wanted = plain_boxes(output, head, least, iou)
        num_left_out += output.shape[head == "places"] - len(wanted)
        assert row["error"] is None, row["message"]
        assert [d["label"] for d in row["detections"]] == [label for label, *_ in wanted]
        offset = np.array([*offset_of(image)] * 2)
        most = np.array([*image.size] * 2)
        for detection, (_, score, *box) in zip(row["detections"], wanted, strict=True):
            assert detection["score"] == pytest.approx(score, abs=1e-6)
            on_photo = (np.array(box) - offset).clip(0, most)
            assert [detection[name] for name in CORNERS] == pytest.approx([*on_photo], abs=1e-3)
    assert num_left_out > 0


def test_the_letterbox_is_that_of_the_library(tmp_path: Path):
    facts = facts_of(tmp_path, size_px=("height", "width"), imgsz="[64, 96]")
    assert facts.transform is not None
    assert facts.transform.to_dict() == {
        **{"size_px": [64, 96], "resize": "pad", "interpolation": "bilinear-plain"},
        **{"pad_value": 114, "mean": [0.0] * 3, "std": [1.0] * 3},
    }
    assert facts.labels == LABELS


@pytest.mark.parametrize(
    ("size_px", "imgsz", "wanted"),
    [
        ((64, 96), "[32, 32]", (64, 96)),
        (("height", "width"), "96", 96),
        (("height", "width"), "[96]", None),
        (("height", "width"), "[96, 1000000000]", None),
        (("height", "width"), "['96', '96']", None),
        (("height", "width"), "__import__('os').abort()", None),
        (("height", "width"), "[" * 100_000, None),
    ],
)
def test_the_size_is_that_of_the_input_or_of_the_metadata(
    tmp_path: Path, size_px: Any, imgsz: str, wanted: Any
):
    transform = facts_of(tmp_path, size_px=size_px, imgsz=imgsz).transform
    assert (transform and transform.size_px) == wanted


def exported(shape: Sequence[Any], metadata: dict[str, str]) -> Exported:
    """Read the metadata of a file with two or three labels and an output of a shape."""
    usual = {"author": "Ultralytics", "task": "detect", "imgsz": "[64, 64]", "end2end": "False"}
    labels = ("cat", "dog") if metadata.pop("two", "") else LABELS
    outputs = [TensorFacts("output0", "float32", tuple(shape))]
    return read_metadata({**usual, **metadata}, labels, ImageContract(3, 64, 64), outputs)


@pytest.mark.parametrize(
    ("shape", "metadata", "head"),
    [
        (("batch", "a", "anchors"), {}, "places"),
        (("batch", 7, 84), {}, "places"),
        (("batch", "a", "b"), {"args": "{'nms': True}"}, "rows"),
        (("batch", 300, 6), {}, "rows"),
        (("batch", 300, 6), {"end2end": "True", "two": "labels"}, "rows"),
        (("batch", 6, 84), {"two": "labels"}, "places"),
        (("batch", 300, 6), {"two": "labels"}, ""),  # RT-DETR has 4 + 2 numbers, too
        (("batch", 300, 7), {}, ""),
        (("batch", 7, 7), {}, ""),
        (("batch", 300, 38), {"args": "{'nms': True}"}, ""),
        (("batch", 7, 84), {"head": "RTDETRDecoder"}, ""),
        (("batch", 7, 84), {"author": "somebody"}, ""),
        (("batch", 7), {}, ""),
    ],
)
def test_a_layout_is_read_if_nothing_else_has_it(
    shape: Sequence[Any], metadata: dict[str, str], head: str
):
    assert exported(shape, metadata).head == head


@pytest.mark.parametrize(
    ("shape", "metadata", "words"),
    [
        (("b", 300, 7), {}, "is no (B, 4 + 3, N) or (B, N, 6) as ultralytics' YOLO has"),
        (("b", 84, 8), {"author": ""}, "has objectness beside 3 scores, as YOLOv5's"),
        (("b", 84, 9), {"author": ""}, ""),
    ],
)
def test_it_is_known_what_another_layout_is(
    shape: Sequence[Any], metadata: dict[str, str], words: str
):
    assert exported(shape, metadata).no_boxes == words


def test_another_task_is_refused_with_the_way_out(tmp_path: Path):
    path = save(onnx_files.yolo_model("places", task="pose"), tmp_path / "m.onnx")
    words = "; it is of ultralytics' task 'pose', not 'detect': .* name a model.postprocess"
    with pytest.raises(JobError, match=words) as caught:
        detectors.spec_of(None, path=str(path))
    assert "\n" not in str(caught.value)


def test_a_file_without_names_asks_for_a_reading(tmp_path: Path):
    path = save(onnx_files.yolo_model("places", names="os.abort()"), tmp_path / "m.onnx")
    with pytest.raises(JobError, match=r"it is no \(B, 4 \+ 0, N\)"):
        detectors.spec_of(None, path=str(path), labels=[*LABELS])


def test_the_post_processing_of_the_example_reads_the_output_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(ROOT / "examples/detection")
    monkeypatch.setenv("PIPELINE_ALLOW_IMPORT", "yolo_head")
    path = save(onnx_files.yolo_model("places"), tmp_path / "m.onnx")
    step = "yolo_head:decode"
    spec = detectors.spec_of(None, path=str(path), postprocess=step, min_score=0.25, nms_iou=0.7)
    plain = detectors.spec_of(None, path=str(path))
    assert (spec.task.head, spec.task.max_detections) == ("", 100)
    photos = [data for data, _ in PHOTOS]
    columns = [
        [row["detections"] for row in detectors.detections(each_spec, photos)]
        for each_spec in (spec, plain)
    ]
    assert columns[0] == columns[1]


def test_a_classifier_is_resized_and_cropped(tmp_path: Path):
    model = onnx_files.image_model(32)
    onnx_files.helper.set_model_props(model, {"author": "Ultralytics", "task": "classify"})
    transform = read_onnx_facts(save(model, tmp_path / "m.onnx")).transform
    assert transform is not None
    assert (transform.resize, transform.resize_px, transform.size_px) == ("shortest", 32, 32)
    assert transform.interpolation == "bilinear"
