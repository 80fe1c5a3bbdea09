"""The predictions of a directory of images by its own library: alone, by its own ways.

They are of our pixels, which are held to those of the library when facts are read: the two round
otherwise, and a model may make much of that.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    DETECTIONS,
    EMBEDDING,
    LABEL,
    LABEL_ID,
    SCORE,
    VALUE,
)
from pipeline.models.directories import probes
from pipeline.models.directories.facts import TOWERS, DirectoryFacts, LibraryClass, TimmModel
from pipeline.models.directories.image.image_transform import image_processor
from pipeline.models.directories.image.timm_models import is_read_by_timm
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.tasks.detect import CORNERS
from pipeline.preprocessing.images.geometry import made_px
from pipeline.preprocessing.images.image_input import ImageInput

if TYPE_CHECKING:
    import torch

Row = Mapping[str, Any]
_FUNCTIONS = {"classify": "softmax", "multilabel": "sigmoid", "regress": "none"}
"""Task -> what the library's pipeline applies to the logits of a classifier."""
_MOST_PX = 1 << 17
"""Of all images that a model sees: two of 224 x 224 px, which take a ViT-B a second each way."""


class _Seen(NamedTuple):
    """What a model sees of an image, and the image's own size."""

    pixels: torch.Tensor
    height_px: int
    width_px: int


_Predict = Callable[[_Seen], Row]


def image_probes(spec: ModelSpec) -> tuple[bytes, ...]:
    """Return four encoded images, or as many as are few enough pixels to the model."""
    assert isinstance(spec.input, ImageInput), "its rows are images"
    chosen: list[bytes] = []
    num_px = 0
    for data in probes.images():
        with Image.open(io.BytesIO(data)) as image:
            num_px += made_px(spec.input.transform, *image.size)
        if chosen and num_px > _MOST_PX:
            break
        chosen.append(data)
    return (*chosen,)


def image_predictions(
    path: Path,
    facts: DirectoryFacts,
    task: TaskSpec,
    rows: Sequence[tuple[torch.Tensor, int, int]],
) -> list[Row | None] | None:
    """Return the columns of a task for some images.

    Args:
        path: The directory.
        facts: Of it.
        task: A task that it serves.
        rows: Of each image what the model sees, float32 (1, C, H, W), normalised; and the height
            and width in px of the image itself.

    Returns:
        Columns as they are published, or as golden rows have them, per row; None for a row over
        which the library fails. None: it has no way of its own to this task.

    Raises:
        JobError: The library fails over each row.
    """
    import torch

    predict = _way(path, facts, task)
    if predict is None:
        return None
    results: list[Row | None] = []
    errors = []
    for seen in map(_Seen._make, rows):
        with torch.inference_mode():
            try:
                results.append(predict(seen))
            except Exception as error:  # noqa: BLE001  # the library fails over images in many ways
                results.append(None)
                errors.append(clean_message(f"{type(error).__name__}: {error}", 200))
    if len(errors) == len(rows):
        raise JobError(f"model.path: its library fails over each probe: {errors[0]}")
    return results


def _way(path: Path, facts: DirectoryFacts, task: TaskSpec) -> _Predict | None:
    """Return what predicts an image by the library; None if nothing does."""
    import torch
    import transformers

    from pipeline.models.directories.image.image_modules import ImageModule

    if isinstance(facts.module, TimmModel):
        return _of_timm(path, task) if is_read_by_timm(path) else None
    assert isinstance(facts.module, LibraryClass), "an .onnx file is held elsewhere"
    path = path / facts.module.at
    if facts.module.head == "image":
        return _of_classifier(path, task)
    if task.kind == "zero_shot":
        return _of_prompts(path, task)
    cls = getattr(transformers, facts.module.built)
    model = cls.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
    if facts.module.head == "detection":
        return _of_detector(path, model, task)
    if facts.module.head == TOWERS:
        return lambda seen: _vector(model.get_image_features(pixel_values=seen.pixels))
    if facts.pooling is None:
        return None
    encoder = ImageModule(model, facts.pooling.modes[0])
    return lambda seen: _vector(encoder(seen.pixels))


def _of_timm(path: Path, task: TaskSpec) -> _Predict:
    import timm

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()

    def predict(seen: _Seen) -> Row:
        if task.kind == "embed":
            features = model.forward_features(seen.pixels)
            return _vector(model.forward_head(features, pre_logits=True))
        logits = model(seen.pixels)[0]
        scores = logits.softmax(0) if task.kind == "classify" else logits.sigmoid()
        return probes.labelled(task, zip(task.labels, scores.tolist(), strict=True))

    return predict


def _of_classifier(path: Path, task: TaskSpec) -> _Predict:
    run, function = _pipeline("image-classification", path), _FUNCTIONS[task.kind]

    def predict(seen: _Seen) -> Row:
        outputs, every = run.model(pixel_values=seen.pixels), run.model.config.num_labels
        entries = run.postprocess(outputs, function_to_apply=function, top_k=every)
        if task.kind == "regress":
            return {(*task.targets, VALUE)[0]: entries[0]["score"]}
        return probes.labelled(task, ((entry["label"], entry["score"]) for entry in entries))

    return predict


def _of_prompts(path: Path, task: TaskSpec) -> _Predict:
    run = _pipeline("zero-shot-image-classification", path)
    labels = dict(zip(task.prompts, task.labels, strict=True))

    def predict(seen: _Seen) -> Row:
        given = run.preprocess(Image.new("RGB", (64, 64)), [*labels], "{}")
        outputs = run.forward({**given, "pixel_values": seen.pixels})
        entries = run.postprocess(outputs)
        named = ((labels[entry["label"]], entry["score"]) for entry in entries)
        return probes.labelled(task, named)

    return predict


def _pipeline(name: str, path: Path) -> Any:
    import torch
    from transformers import pipeline

    given = {"model": str(path), "device": "cpu", "dtype": torch.float32}
    return pipeline(name, **given)


def _of_detector(path: Path, model: Any, task: TaskSpec) -> _Predict:
    processor, names = image_processor(path), model.config.id2label

    def predict(seen: _Seen) -> Row:
        [detected] = processor.post_process_object_detection(
            model(pixel_values=seen.pixels),
            threshold=task.min_score,
            target_sizes=[(seen.height_px, seen.width_px)],
        )
        best = detected["scores"].argsort(descending=True)
        entries = []
        for place in best.tolist():
            label, score = int(detected["labels"][place]), float(detected["scores"][place])
            corners = dict(zip(CORNERS, detected["boxes"][place].tolist(), strict=True))
            entries.append({LABEL: names[label], LABEL_ID: label, SCORE: score, **corners})
        return {DETECTIONS: entries}

    return predict


def _vector(outputs: Any) -> Row:
    from pipeline.models.directories.image.image_modules import features

    return {EMBEDDING: features(outputs)[0].tolist()}
