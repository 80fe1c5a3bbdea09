"""The section `transform` with a factory."""

from __future__ import annotations

from typing import Any

import models
import own_transforms
import pytest
from support.runs.jobs import job_of

from pipeline.core.errors import JobError
from pipeline.job.job import Job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.preprocessing.images.image_input import ImageInput
from pipeline.preprocessing.images.transform import TransformSpec

PLAIN = {"mean": [0.0] * 3, "std": [1.0] * 3}


def image_job(transform: dict[str, Any], **model: Any) -> Job:
    return job_of(
        {"factory": "models:colours", "labels": models.LABELS, **model}, transform=transform
    )


def spec_of(transform: dict[str, Any], allowed: str = "own_transforms", **model: Any):
    job = image_job({"factory": "own_transforms:composed", **transform}, **model)
    image_input = resolve_model(job, ["models", allowed]).input
    assert isinstance(image_input, ImageInput)
    return image_input.transform


def test_size_channels_and_the_digest_of_the_source_are_part_of_the_transform():
    spec = spec_of({**PLAIN, "size_px": [32, 48], "args": {"size_px": 32}})
    assert (spec.height_px, spec.width_px, spec.num_channels) == (32, 48, 3)
    document = spec.to_dict()
    assert (document["factory"], document["args"]) == ("own_transforms:composed", {"size_px": 32})
    assert len(document["code_sha256"]) == 64
    assert TransformSpec.from_dict(document) == spec
    assert not {"resize_px", "interpolation", "resize", "channels"} & document.keys()
    for count in (1, 2, 4):
        values = {"mean": [0.5] * count, "std": [0.5] * count}
        spec = spec_of({**values, "size_px": 32})
        assert spec.num_channels == count
        assert spec.exact() == spec


def test_the_default_size_is_that_of_the_model_or_any():
    assert not spec_of(PLAIN).has_one_size
    by_model = spec_of({}, name="efficientnet-lite0", factory=None, labels=None)
    assert by_model.shape == (224, 224, 3)
    assert by_model.mean == pytest.approx((127 / 255,) * 3)


def test_resize_none_without_a_size_keeps_images_unchanged():
    job = image_job({"resize": "none", **PLAIN})
    image_input = resolve_model(job, ["models"]).input
    assert image_input.settings() == {**TransformSpec.from_dict(image_input.settings()).to_dict()}
    assert not image_input.transform.has_one_size
    assert job.transform.may_vary
    assert not image_job({"resize": "none", "size_px": 8, **PLAIN}).transform.may_vary
    wrong = image_job({"resize": "none", "pad_value": 9, **PLAIN})
    with pytest.raises(JobError, match="pad_value has no effect without size_px"):
        resolve_model(wrong, ["models"])


def test_fields_without_effect_are_accepted_beside_a_factory():
    job = image_job({"factory": "own_transforms:composed", **PLAIN, "shrink_on_load": False})
    assert job.transform.shrink_on_load is False


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mean": None}, "models:colours brings no mean and std; give mean, one value for each ch"),
        ({"std": [1.0]}, "mean has 3 and std 1 values, they must have 3 values each"),
        (
            {"args": {"size": 1}},
            r"unexpected keyword argument 'size', with those of transform\.args",
        ),
    ],
)
def test_missing_or_unsuitable_fields_are_an_error(fields: dict[str, Any], words: str):
    with pytest.raises(JobError, match=words):
        spec_of({**PLAIN, **fields})


def test_a_module_that_is_not_allowed_is_not_imported():
    with pytest.raises(JobError, match=r"transform\.factory = .*: importing own_transforms is"):
        spec_of(PLAIN, allowed="other")
    assert own_transforms.SIZE_PX == 32
