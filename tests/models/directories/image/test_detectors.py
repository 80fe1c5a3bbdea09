"""Test that directories of detectors give the boxes of the library's own post-processing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import detectors
from support.models.detector_snapshots import DETECTORS, as_published, make_detector
from support.models.snapshots import change_json, write_image_processor
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.models.directories.image.image_transform import read_transform
from pipeline.models.directories.opening import build_module, open_facts, read_facts
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.images.geometry import placement
from pipeline.preprocessing.images.transform import TransformSpec

HEIGHT, WIDTH = 64, 96
MIN_SCORE = 0.05
CLOSE = 1e-4
PIXELS = torch.randn(2, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
TIMM = "test_resnet"
QUICK = ("deformable_detr", "yolos")


@pytest.mark.parametrize(
    "family", quick_cases(((family,) for family in DETECTORS), lambda family: family in QUICK)
)
def test_a_detector_gives_the_boxes_of_the_library(family: str, tmp_path: Path):
    require_the_librarys_boxes(make_detector(tmp_path / "m", family), family)


@pytest.mark.parametrize(
    "family",
    quick_cases(
        [("detr",), ("dab-detr",), ("table-transformer",)], lambda family: family == "detr"
    ),
)
def test_a_backbone_of_timm_is_read_as_it_was_published(family: str, tmp_path: Path):
    path = make_detector(tmp_path / "m", family, backbone=TIMM)
    as_published(path, TIMM)
    require_the_librarys_boxes(path, family)


def require_the_librarys_boxes(path: Path, family: str) -> None:
    import transformers

    facts, detector = read_facts(path), DETECTORS[family]
    assert (facts.input, facts.tasks, facts.labels) == (
        "image",
        ("detect",),
        ("none", "cat", "dog"),
    )
    theirs = transformers.AutoModelForObjectDetection.from_pretrained(path).eval()
    processor = getattr(transformers, f"{detector.processor}ImageProcessor")()
    spec = TaskSpec(
        "detect", labels=facts.labels, min_score=MIN_SCORE, max_detections=detector.keeps
    )
    with torch.inference_mode():
        outputs = build_module(path, facts, spec)(PIXELS)
        wanted = processor.post_process_object_detection(
            theirs(pixel_values=PIXELS), threshold=MIN_SCORE, target_sizes=[(HEIGHT, WIDTH)] * 2
        )
    images = {"image": torch.zeros(2, HEIGHT, WIDTH, 3, dtype=torch.uint8)}
    detections = make_task(spec).reduce_batch(outputs, 2, images)
    assert min(len(entry["scores"]) for entry in wanted)
    for row, entry in enumerate(wanted):
        order = entry["scores"].argsort(descending=True, stable=True)
        count = len(order)
        close = {"atol": CLOSE, "rtol": CLOSE}
        torch.testing.assert_close(
            detections["score"][row, :count], entry["scores"][order], **close
        )
        assert not detections["score"][row, count:].any()
        # Of like scores either is first.
        ours = torch.column_stack(
            [detections[name][row, :count] for name in ("label_id", "score", "boxes")]
        )
        theirs = torch.column_stack([entry[name] for name in ("labels", "scores", "boxes")])
        alike = torch.isclose(ours[:, None], theirs[None], **close).all(dim=2)
        assert alike.any(dim=0).all()
        assert alike.any(dim=1).all()


def test_a_model_that_is_not_asked_for_boxes_is_refused_with_what_it_serves(tmp_path: Path):
    path = make_detector(tmp_path / "m", "yolos")
    with pytest.raises(JobError, match=r"'classify': YolosForObjectDetection .* detect"):
        build_module(path, read_facts(path), TaskSpec("classify"))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("detr", {"backbone_config": None, "backbone": "hf-hub:someone/model"}),
        ("detr", {"backbone_config": {"model_type": "timm_backbone", "backbone": "local-dir:/x"}}),
        ("rf_detr", {"backbone_config": None, "backbone": "resnet50"}),
    ],
)
def test_a_backbone_is_never_fetched(family: str, changes: dict[str, Any], tmp_path: Path):
    path = make_detector(tmp_path / "m", family)
    change_json(path / "config.json", **changes)
    words = "backbone is .*, expected the name|offline|is not allowed over a model directory"
    with pytest.raises(JobError, match=words) as caught:
        open_facts(str(path), {}, "image")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("size", "expected"),
    [({"shortest_edge": 96, "longest_edge": 90}, (90, 90)), (800, (800, 1333))],
)
def test_the_sizes_that_a_processor_of_detectors_says_are_read(
    size: Any, expected: tuple[int, int], tmp_path: Path
):
    named = {"image_processor_type": "DetrImageProcessor", "size": size}
    write_image_processor(tmp_path, **named, do_pad=True, do_center_crop=False)
    transform, problem, _ = read_transform(tmp_path)
    assert transform is not None, problem
    sizes = (transform.size_px, transform.resize_px, transform.resize)
    assert sizes == (None, expected, "shortest")


def test_another_number_of_labels_is_refused_and_not_taken_for_no_object(tmp_path: Path):
    path = make_detector(tmp_path / "m", "rt_detr")
    with pytest.raises(JobError, match=r"model.labels: has 2 names, and RTDetr.* has 3 labels"):
        detectors.spec_of(None, path=str(path), labels=["cat", "dog"])
    named = detectors.spec_of(None, path=str(path), labels=["a", "b", "c"])
    assert named.task.labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor.post_process_object_d"),
        ({"image_processor_type": "PPDocLayoutV3ImageProcessor"}, "differently"),
        ({"image_processor_type": "NoSuchImageProcessor", "size": 3}, "makes no image processor"),
    ],
)
def test_boxes_that_the_library_reads_otherwise_are_refused(
    changes: dict[str, Any], words: str, tmp_path: Path
):
    path = make_detector(tmp_path / "m", "d_fine")
    change_json(path / "preprocessor_config.json", **changes)
    with pytest.raises(JobError, match=words) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("sizes", [(800, 1333), (64, 96), (64, 64), (800, 800)])
def test_images_that_are_not_cropped_have_the_sizes_of_the_library(sizes: tuple[int, int]):
    from transformers.image_transforms import get_size_with_aspect_ratio

    spec = TransformSpec(None, sizes, "bilinear", (0.0,) * 3, (1.0,) * 3)
    assert TransformSpec.from_dict(spec.to_dict()) == spec
    shapes = np.random.default_rng(0).integers(20, 2000, (500, 2)).tolist()
    for height, width in [*shapes, [800, 900], [64, 64], [96, 64], [1333, 800], [70, 70]]:
        expected = get_size_with_aspect_ratio((height, width), *sizes)
        assert placement(spec, width, height)[:2] == expected
