"""Facts of snapshots of transformers whose model takes images, or images and texts (two towers)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.chosen import CONFIG, ModelClass, width_of
from pipeline.models.directories.facts import TOWERS, DirectoryFacts, ImageContract, Pooling
from pipeline.models.directories.image.image_transform import in_words, read_transform
from pipeline.models.directories.library import quiet
from pipeline.models.directories.loading import has_class_token, pooler_option
from pipeline.models.directories.text.encoder_facts import text_notes, text_of
from pipeline.models.directories.text.text_facts import TOKENIZER
from pipeline.models.directories.text.writing.features import image_generation_facts
from pipeline.preprocessing.images.transform import TransformSpec

_USUAL_PX = 224
_SIGLIP = "siglip"
"""In the type of a model whose library gives each prompt a sigmoid of its own: SigLIP, SigLIP 2."""
_SOFTMAX = ("detr", "table-transformer", "yolos")
_SIGMOID = (
    *("conditional_detr", "d_fine", "dab-detr", "deformable_detr", "deimv2", "lw_detr"),
    *("rf_detr", "rt_detr", "rt_detr_v2"),
)
FAMILIES = (*_SOFTMAX, *_SIGMOID)
"""Detectors whose own post-processing, `post_process_object_detection`, was read: it is what task
`detect` does with `logits` and `pred_boxes`. Each has as many logits as labels and takes their
sigmoids, but for the first ones, which have one more, for no object, and take the softmax."""


def image_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that takes images.

    Raises:
        JobError: The directory is refused.
    """
    labels, dim, pooling = None, None, None
    if chosen.head == "image":
        labels = heads.labels_of(chosen.config, chosen.values)
        tasks = heads.tasks_of("image", labels, chosen.values, scores_pairs=False)
        what = f"{len(labels)} outputs, {', '.join(tasks)}"
    elif chosen.head == "detection":
        labels, what = _detector_labels(chosen)
        tasks = ("detect",)
    else:
        poolings = _poolings(chosen)
        lengths = _lengths(chosen, poolings)
        poolings = tuple(lengths) or poolings
        pooling = Pooling(poolings[:1], poolings)
        keys = ("projection_dim",) if poolings[0] == "projection" else ()
        dim = lengths.get(poolings[0])
        dim = dim or width_of(chosen.config, *keys, "hidden_size", "hidden_sizes")
        tasks, what = ("embed",), f"pooling {poolings[0]}; {dim} numbers per image"
    images = _images(chosen)
    transform, problem, note = _transform(folder, chosen, images)
    return chosen.directory(
        "image",
        tasks,
        labels=labels,
        embedding_dim=dim,
        transform=transform,
        transform_problem=problem,
        images=images,
        pooling=pooling,
        notes=(f"{CONFIG}: {chosen.named.__name__}, {what}", note),
    )


def caption_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that writes to an image.

    Raises:
        JobError: The directory is refused.
    """
    written = image_generation_facts(folder, chosen)
    images = _images(chosen)._replace(height_px=written.image_px, width_px=written.image_px)
    transform, problem, note = _transform(folder, chosen, images)
    return chosen.directory(
        "image",
        ("generate",),
        transform=transform,
        transform_problem=problem,
        images=images,
        generation=written,
        notes=(f"{CONFIG}: {chosen.named.__name__}, writes to an image", note, written.note),
    )


def tower_facts(folder: Path, chosen: ModelClass, wanted: str) -> DirectoryFacts:
    """Read the facts of one tower of a model of images and texts.

    Raises:
        JobError: There is no such tower, or the directory is refused.
    """
    if wanted not in ("image", "text"):
        raise JobError(f"model.path: {chosen.named.__name__} takes images or texts, not {wanted}")
    config = chosen.config
    dim = width_of(config, "projection_dim") if hasattr(config, "projection_dim") else None
    if not hasattr(chosen.module, tower := f"{'vision' if wanted == 'image' else 'text'}_model"):
        raise JobError(f"model.path: {CONFIG}: {chosen.named.__name__} has no {tower} to take")
    if not hasattr(chosen.built, "get_text_features"):
        raise JobError(
            f"model.path: {CONFIG}: {chosen.named.__name__} makes no vectors of texts in one space "
            "with those of images"
        )
    dim = dim or width_of(
        getattr(config, f"{'vision' if wanted == 'image' else 'text'}_config"),
        *(("projection_size",) if wanted == "text" else ()),
        "hidden_size",
    )
    is_sigmoid = wanted == "image" and _SIGLIP in config.model_type
    transform, problem, text, images = None, "", None, ImageContract()
    if wanted == "image":
        images = _images(chosen)
        transform, problem, line = _transform(folder, chosen, images)
        notes: tuple[str, ...] = (line,)
    else:
        text = text_of(folder, chosen.at, chosen.module)
        notes = text_notes(text)
    # Of images, the prompts need the tokenizer.
    has_prompts = wanted == "text" or (folder / (chosen.at + TOKENIZER)).is_file()
    return chosen.directory(
        wanted,
        ("embed", "zero_shot") if has_prompts else ("embed",),
        embedding_dim=dim,
        module=replace(chosen.facts, head=TOWERS),
        transform=transform,
        transform_problem=problem,
        images=images,
        text=text,
        scores="sigmoid" if is_sigmoid else None,
        notes=(
            f"{CONFIG}: {chosen.named.__name__}, {dim} numbers per {wanted}"
            + ("; scores of prompts are sigmoids" if is_sigmoid else ""),
            *notes,
        ),
    )


def _detector_labels(chosen: ModelClass) -> tuple[tuple[str, ...], str]:
    """Return the class names, and what is said of the outputs.

    Raises:
        JobError: It is a detector of another kind.
    """
    model_type, config = chosen.values.get("model_type"), chosen.config
    if model_type not in FAMILIES:
        raise JobError(
            f"model.path: {CONFIG}: {chosen.named.__name__} is a detector whose boxes are read in "
            f"a way of its own; expected one of {', '.join(FAMILIES)}"
        )
    if getattr(config, "use_focal_loss", True) is False:
        raise JobError(
            f"model.path: {CONFIG}: use_focal_loss is false, so that the last label means no "
            "object; expected true, as published models of this family have it"
        )
    labels = heads.labels_of(config, chosen.values)
    how = "softmax, one more for no object" if model_type in _SOFTMAX else "sigmoid"
    return labels, f"{len(labels)} labels ({how}), detect"


def _poolings(chosen: ModelClass) -> tuple[str, ...]:
    """Return the ways to one vector per image, the default first.

    `cls` is the first vector, `mean` that of all, `pooler` and `projection` are the model's own.
    """
    if chosen.built.__name__.endswith("WithProjection"):
        return ("projection",)
    if not has_class_token(chosen.built, chosen.config):
        has_pooler = getattr(chosen.module, "pooler", chosen.module) is not None
        return ("pooler", "mean") if has_pooler else ("mean",)
    if chosen.built.__name__.endswith("VisionModel"):
        return "pooler", "cls", "mean"
    return "cls", "mean"


def _lengths(chosen: ModelClass, poolings: Sequence[str]) -> dict[str, int]:
    """Return the length of the vectors of each pooling that the class has the output for.

    Its configuration does not say that; so it runs, without numbers. Empty: it cannot.

    Raises:
        JobError: The images of a batch become one.
    """
    if "projection" in poolings:
        return {}
    import torch

    from pipeline.models.directories.image.image_modules import pooled

    side = getattr(chosen.config, "image_size", None) or _USUAL_PX
    height, width = side if isinstance(side, list | tuple) else (side, side)
    options = pooler_option(chosen.built, chosen.config, chosen.module.state_dict())
    lengths: dict[str, int] = {}
    with quiet(), torch.device("meta"), torch.inference_mode():
        try:
            model = chosen.built(chosen.config, **options).eval()
            given = model(torch.empty(2, _images(chosen).num_channels or 3, height, width))
        except Exception:  # noqa: BLE001  # of the library; what it cannot do, its rows will tell
            return {}
        for pooling in poolings:
            with contextlib.suppress(AttributeError):  # no such output, or None
                vectors = pooled(given, pooling)
                if vectors.ndim == 2 and len(vectors) != 2:
                    raise JobError(
                        f"model.path: {CONFIG}: {chosen.built.__name__} gives no vector per image: "
                        "it joins the images of a batch; it must treat each by itself"
                    )
                if vectors.ndim == 2:  # CvT has a class token, and no place for it in its map
                    lengths[pooling] = vectors.shape[1]
    return lengths


def _images(chosen: ModelClass) -> ImageContract:
    whole = chosen.config
    config = getattr(whole, "vision_config", None) or getattr(whole, "encoder", None) or whole
    return ImageContract(getattr(config, "num_channels", None))


def _transform(
    folder: Path, chosen: ModelClass, images: ImageContract
) -> tuple[TransformSpec | None, str, str]:
    """Return the transform, '' or why there is none, and what is said of it."""
    transform, problem, where = read_transform(folder, chosen.at, images.num_channels)
    if transform is None:
        return None, problem or "", f"no transform: {problem}"
    return transform, "", f"{where}: {in_words(transform)}"
