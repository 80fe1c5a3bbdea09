"""Test that boxes equal those of a plain loop for all orientations, sizes and transforms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import detectors
from support.models.detector_snapshots import DETECTORS, make_detector
from support.models.detectors import Fitted, Seen
from support.models.snapshots import change_json
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError

NUM_FEW = 3
TRANSFORMS: dict[str, dict[str, Any]] = {
    "shortest": {
        **{"size_px": 64, "resize_px": 72, "resize": "shortest"},
        "interpolation": "bilinear",
    },
    "stretch": {"size_px": 96, "resize": "stretch", "interpolation": "bilinear"},
    "pad": {"size_px": 96, "resize": "pad", "interpolation": "bilinear"},
    "none": {"size_px": 80, "resize": "none"},
    "as it is": {"resize": "none"},
}
PROCESSORS: dict[str, dict[str, Any]] = {
    "detr": {"size": {"shortest_edge": 64, "longest_edge": 96}, "do_pad": True},
    "table-transformer": {"size": {"shortest_edge": 90, "longest_edge": 90}, "do_pad": True},
    "d_fine": {"do_normalize": False},
}
ALL = pytest.mark.parametrize("transform", TRANSFORMS)
Loop = Callable[[Fitted], Seen]


def agree(model: dict[str, Any], transform: dict[str, Any], loop: Loop, num_photos: int = 8) -> int:
    """Hold the boxes of the pipeline to those of a loop; return how many there are."""
    photos = detectors.photos()[:num_photos]
    spec = detectors.spec_of({**transform, **detectors.PLAIN}, **model)
    rows = detectors.detections(spec, [data for data, _ in photos])
    count = 0
    with torch.inference_mode():
        for row, (_, image) in zip(rows, photos, strict=True):
            fitted = detectors.fit(image, transform)
            wanted = detectors.on_photo(loop(fitted), fitted, image, spec.task.min_score)
            assert row["error"] is None, row["message"]
            assert (row["width_px"], row["height_px"]) == image.size
            detections = row["detections"]
            names = ("x_min", "y_min", "x_max", "y_max")
            assert [detection["label"] for detection in detections] == [
                spec.task.labels[detection["label_id"]] for detection in detections
            ]
            rows_of = [
                [detection[name] for name in ("label_id", "score", *names)]
                for detection in detections
            ]
            require_equal(torch.tensor(rows_of).reshape(-1, 6), wanted)
            count += len(detections)
    return count


def require_equal(boxes: torch.Tensor, wanted: Seen) -> None:
    """Hold detections (D, 6), label, score and corners, to others; like scores in any order."""
    others = torch.cat([wanted.label_ids[:, None], wanted.scores[:, None], wanted.boxes], dim=1)
    assert boxes.shape == others.shape
    torch.testing.assert_close(boxes[:, 1], others[:, 1], atol=1e-5, rtol=0)
    most = torch.tensor([0.0, 1e-5, *[5e-3] * 4])
    alike = ((boxes[:, None] - others[None]).abs() <= most).all(dim=2)
    assert alike.any(dim=0).all()
    assert alike.any(dim=1).all()


@ALL
def test_post_processing_of_ones_own_gives_the_boxes_of_a_loop(transform: str):
    module = detectors.yolo_like().eval()
    model = {
        **{"factory": "support.models.detectors:yolo_like", "labels": detectors.LABELS},
        **{"postprocess": "support.models.detectors:decode", "nms_iou": 0.3},
        **{"min_score": 0.6, "max_detections": 300},
    }
    num_agreed = agree(
        model,
        TRANSFORMS[transform],
        lambda fitted: detectors.yolo_boxes(module(fitted.pixels[None])[0], 0.3),
    )
    assert num_agreed > 10


@pytest.mark.parametrize(
    "family", quick_cases(((family,) for family in PROCESSORS), lambda family: family == "detr")
)
def test_a_detector_of_transformers_sees_what_its_own_processor_makes(family: str, tmp_path: Path):
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    path = make_detector(tmp_path / "m", family)
    change_json(path / "preprocessor_config.json", **PROCESSORS[family])
    processor = AutoImageProcessor.from_pretrained(path)
    module = AutoModelForObjectDetection.from_pretrained(path).eval()
    photos = detectors.photos()
    most = DETECTORS[family].keeps
    spec = detectors.spec_of(None, path=str(path), min_score=0.1, max_detections=most)
    count = 0
    rows = detectors.detections(spec, [data for data, _ in photos])
    for row, (_, image) in zip(rows, photos, strict=True):
        with torch.inference_mode():
            outputs = module(**processor(images=image, return_tensors="pt"))
        [expected] = processor.post_process_object_detection(
            outputs, threshold=0.1, target_sizes=[(image.height, image.width)]
        )
        order = expected["scores"].argsort(descending=True, stable=True)
        for detection, place in zip(row["detections"], order.tolist(), strict=True):
            assert detection["label_id"] == int(expected["labels"][place])
            assert detection["score"] == pytest.approx(float(expected["scores"][place]), abs=5e-3)
            x_min, y_min, x_max, y_max = expected["boxes"][place].tolist()
            wanted = [
                max(0, x_min),
                max(0, y_min),
                min(x_max, image.width),
                min(y_max, image.height),
            ]
            box = [detection[name] for name in ("x_min", "y_min", "x_max", "y_max")]
            assert box == pytest.approx([*wanted], abs=0.5)
            count += 1
    assert count > 10


@pytest.mark.slow
@pytest.mark.parametrize("family", ["rt_detr_v2", "d_fine", "deimv2"])
def test_detectors_that_check_their_own_shapes_run_in_onnx_runtime(family: str, tmp_path: Path):
    path = str(make_detector(tmp_path / "m", family))
    spec = detectors.spec_of(None, path=path, min_score=0.1, max_detections=DETECTORS[family].keeps)
    photos = [data for data, _ in detectors.photos()[:NUM_FEW]]
    plain = detectors.detections(spec, photos)
    exported = detectors.detections(replace(spec, runtime="onnxruntime"), photos)
    assert sum(len(row["detections"]) for row in plain) > 10
    for row, wanted in zip(exported, plain, strict=True):
        assert row["error"] is None, row["message"]
        for name in ("label_id", "score", "x_min", "y_max"):
            values = [detection[name] for detection in row["detections"]]
            assert values == pytest.approx(
                [detection[name] for detection in wanted["detections"]], abs=1e-2
            )


def test_a_detector_of_torchvision_gives_its_own_boxes(tmp_path: Path):
    from torchvision.models import get_model

    name = "ssdlite320_mobilenet_v3_large"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = get_model(name, weights=None, weights_backbone=None, num_classes=3).eval()
    torch.save(module.state_dict(), tmp_path / "w.pth")
    model = {
        **{"name": name, "weights": str(tmp_path / "w.pth"), "labels": detectors.LABELS},
        **{"min_score": 0.05, "max_detections": 400},
    }

    def loop(fitted: Fitted) -> Seen:
        [expected] = module([fitted.pixels])
        return Seen(expected["boxes"], expected["scores"], expected["labels"])

    assert agree(model, TRANSFORMS["as it is"], loop, NUM_FEW) > 10


def test_an_image_without_detections_is_a_row_and_a_broken_one_is_not():
    model = {"factory": "support.models.detectors:yolo_like", "labels": detectors.LABELS}
    spec = detectors.spec_of(
        {**TRANSFORMS["pad"], **detectors.PLAIN},
        **{**model, "postprocess": "support.models.detectors:decode", "min_score": 1.0},
    )
    good, _ = detectors.photo((60, 40), 1, 0)
    whole, broken = detectors.detections(spec, [good, good[:200]])
    assert (whole["detections"], whole["error"]) == ([], None)
    assert (whole["width_px"], whole["height_px"]) == (60, 40)
    assert broken["detections"] is None
    assert broken["error"] is not None


def test_a_transform_of_ones_own_is_refused_for_what_cannot_be_undone():
    with pytest.raises(JobError, match=r"task 'detect' undoes the transform"):
        detectors.spec_of(
            {"factory": "support.models.detectors:decode", **detectors.PLAIN},
            factory="support.models.detectors:yolo_like",
            labels=detectors.LABELS,
            postprocess="support.models.detectors:decode",
        )
