"""Test that detectors that find what texts name give the boxes of the library's pipeline."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import transformers
from PIL import Image
from support.inputs.encoded import base_image, png
from support.models.prompted_snapshots import PX, make_prompted
from support.models.snapshots import make_snapshot
from support.runs.jobs import job_over

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.inference.engines import open_engine
from pipeline.inference.library_check import hold_to_library
from pipeline.job.model import Model
from pipeline.job.transform import Transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks.detect import CORNERS
from pipeline.preprocessing.model_input import Limits

PROMPTS = {"a cat": "the cat", "dogs": "a dog and the film of it", "it": "it"}
LEAST = 0.05
DATA = [png(base_image(seed, PX, PX)) for seed in (1, 2, 3)]


TRANSFORM = Transform(size_px=PX, resize="stretch", interpolation="bilinear",
                      mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))  # fmt: skip


def spec_of(path: Path, transform: Transform = TRANSFORM, **model: Any) -> ModelSpec:
    given = {"prompts": PROMPTS, "task": "detect", "min_score": LEAST, **model}
    return resolve_model(job_over("image", Model(path=str(path), **given), transform=transform))


def detected(spec: ModelSpec) -> list[list[dict[str, Any]]]:
    ids = [str(row) for row in range(len(DATA))]
    columns = {"row_id": ids, "uri": ids, "image": pa.array(DATA, pa.large_binary())}
    rows = pa.table({**columns, **failure_columns([None] * len(DATA))})
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))
    config = PredictorConfig(spec, 2, 0.0, 1, pa.schema([]))
    return open_engine(config).predict(prepared, {}).column("detections").to_pylist()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["OwlViT", "Owlv2", "GroundingDino"])
def test_boxes_are_those_of_the_library(family: str, tmp_path: Path):
    path = make_prompted(tmp_path, family)
    spec = spec_of(path, TRANSFORM if family == "Owlv2" else Transform(), max_detections=1_000)
    run = transformers.pipeline("zero-shot-object-detection", model=str(path))
    for data, ours in zip(DATA, detected(spec), strict=True):
        image = Image.open(io.BytesIO(data))
        theirs = run(image, candidate_labels=[*PROMPTS.values()], threshold=LEAST)
        assert len({entry["label"] for entry in theirs}) == len(PROMPTS)
        for label, prompt in PROMPTS.items():
            mine = [entry for entry in ours if entry["label"] == label]
            others = [entry for entry in theirs if entry["label"] == prompt]
            scores = [entry["score"] for entry in others]
            assert [entry["score"] for entry in mine] == pytest.approx(scores, abs=1e-5)
            boxes = [[np.clip(side, 0, PX) for side in entry["box"].values()] for entry in others]
            sides = [[entry[side] for side in CORNERS] for entry in mine]
            np.testing.assert_allclose(
                sides, boxes, atol=1.01
            )  # the pipeline's are cut to integers
    assert hold_to_library(spec).endswith("images" if family != "Owlv2" else "")


@pytest.mark.filterwarnings("ignore")
def test_prompts_and_detectors_that_do_not_go_together_are_refused(tmp_path: Path):
    path = make_prompted(tmp_path / "owl", "OwlViT")
    with pytest.raises(JobError, match="OwlViTForObjectDetection finds what texts name"):
        spec_of(path, prompts=())
    with pytest.raises(ValueError, match="labels has no effect with prompts"):
        spec_of(path, labels=("a",))
    with pytest.raises(ValueError, match="has a label more than once"):
        spec_of(path, prompts=("a", "a"))
    with pytest.raises(JobError, match="'detect'"):
        spec_of(make_snapshot(tmp_path / "vit", "vit", "image"))
