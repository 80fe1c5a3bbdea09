"""Directories of detectors give what the library's own post-processing gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from snapshots import DETECTORS, change_json, make_detector, make_snapshot

from pipeline.core.errors import JobError
from pipeline.models.directories.build import build_module
from pipeline.models.directories.facts import read_facts
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.geometry import placement
from pipeline.preprocessing.transform import TransformSpec

PIXELS = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
PROCESSORS = {
    "detr": "DetrImageProcessor",
    "conditional_detr": "ConditionalDetrImageProcessor",
    "deformable_detr": "DeformableDetrImageProcessor",
    "yolos": "YolosImageProcessor",
    "rt_detr": "RTDetrImageProcessor",
}


@pytest.mark.parametrize("family", DETECTORS)
def test_a_detector_gives_the_boxes_of_the_library(family: str, tmp_path: Path):
    import transformers

    path = make_detector(tmp_path / "m", family)
    facts = read_facts(path)
    assert (facts.input, facts.tasks, facts.labels) == (
        "image",
        ("detect",),
        ("none", "cat", "dog"),
    )
    theirs = transformers.AutoModelForObjectDetection.from_pretrained(path).eval()
    processor = getattr(transformers, PROCESSORS[family])()
    # These keep as many pairs of query and label as there are queries, others 100.
    most = 12 if family == "rt_detr" else 100
    spec = TaskSpec("detect", labels=facts.labels, min_score=0.05, max_detections=most)
    with torch.inference_mode():
        outputs = build_module(path, facts, spec)(PIXELS)
        wanted = processor.post_process_object_detection(
            theirs(pixel_values=PIXELS), threshold=0.05, target_sizes=[(64, 96)] * 2
        )
    images = {"image": torch.zeros(2, 64, 96, 3, dtype=torch.uint8)}
    found = make_task(spec).reduce_batch(outputs, 2, images)
    assert sum(len(each["scores"]) for each in wanted)
    for row, each in enumerate(wanted):
        order = each["scores"].argsort(descending=True, stable=True)
        count = len(order)
        close = {"atol": 1e-4, "rtol": 1e-4}
        torch.testing.assert_close(found["score"][row, :count], each["scores"][order], **close)
        torch.testing.assert_close(found["boxes"][row, :count], each["boxes"][order], **close)
        assert found["label_id"][row, :count].tolist() == each["labels"][order].tolist()
        assert not found["score"][row, count:].any()


def test_a_model_that_is_not_asked_for_boxes_is_refused_with_what_it_serves(tmp_path: Path):
    path = make_detector(tmp_path / "m", "yolos")
    with pytest.raises(JobError, match=r"'classify': YolosForObjectDetection .* detect"):
        build_module(path, read_facts(path), TaskSpec("classify"))


def test_a_detector_whose_last_label_is_nothing_is_refused(tmp_path: Path):
    path = make_detector(tmp_path / "m", "rt_detr")
    change_json(path / "config.json", use_focal_loss=False)
    with pytest.raises(JobError, match="use_focal_loss is false"):
        read_facts(path)


DETR = {
    "image_processor_type": "DetrImageProcessor",
    "size": {"shortest_edge": 64, "longest_edge": 96},
    "do_pad": True,
}


def test_the_sizes_that_a_processor_of_detectors_says_are_read(tmp_path: Path):
    path = make_detector(tmp_path / "m", "detr")
    change_json(path / "preprocessor_config.json", **DETR)
    transform = read_facts(path).transform
    assert transform is not None
    assert (transform.size_px, transform.resize_px, transform.resize) == (
        None,
        (64, 96),
        "shortest",
    )
    change_json(path / "preprocessor_config.json", size={"shortest_edge": 96, "longest_edge": 96})
    facts = read_facts(path)
    assert facts.transform is None
    assert "gives images many sizes; give the fields" in facts.settings["transform_problem"]


def test_another_head_is_no_detector(tmp_path: Path):
    assert read_facts(make_snapshot(tmp_path / "m", "vit", "image")).tasks[0] == "classify"


@pytest.mark.parametrize("sizes", [(800, 1333), (64, 96), (64, 64)])
def test_images_that_are_not_cropped_have_the_sizes_of_the_library(sizes: tuple[int, int]):
    from transformers.image_transforms import get_size_with_aspect_ratio

    spec = TransformSpec(None, sizes, "bilinear", (0.0,) * 3, (1.0,) * 3)
    shapes = np.random.default_rng(0).integers(20, 2000, (500, 2)).tolist()
    for height, width in [*shapes, [800, 900], [64, 64], [96, 64], [1333, 800]]:
        expected = get_size_with_aspect_ratio((height, width), *sizes)
        if sizes[0] == sizes[1]:  # a square is one number, the shorter side alone
            expected = get_size_with_aspect_ratio((height, width), sizes[0])
        assert placement(spec, width, height)[:2] == expected
