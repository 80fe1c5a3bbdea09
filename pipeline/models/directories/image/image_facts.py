"""Facts of directories of transformers whose model takes images, or has two towers.

The library's own post-processing decides how the outputs of a detector are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import (
    PROMPTED,
    TOWERS,
    DirectoryFacts,
    ImageContract,
    Pooling,
)
from pipeline.models.directories.files import CONFIG, TOKENIZER
from pipeline.models.directories.image.image_transform import image_processor, read_transform
from pipeline.models.directories.library import FACTORY_ADVICE, library_errors
from pipeline.models.directories.model_class import ModelClass, labels_of, tasks_of
from pipeline.models.directories.text.media_prompts import image_generation_facts
from pipeline.models.directories.text.text_facts import text_notes, text_of
from pipeline.preprocessing.images.transform import TransformSpec

if TYPE_CHECKING:
    import torch

_USUAL_PX = 224
_NUM_ROWS = _NUM_AXES = 2
_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")
_READINGS = ("sigmoid", "softmax, one more for no object")
"""How task `detect` reads logits, by the number of logits beyond those of the labels."""
_ROWS, _QUERIES, _PX, _MIN_SCORE, _MOST = 2, 40, (480, 640), 0.05, 100


def image_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that takes images.

    Raises:
        JobError: The directory is refused.
    """
    labels, dim, pooling, prompt_text, images = None, None, None, None, images_of(chosen)
    transform, problem, note = read_transform(folder, chosen.at, images.num_channels)
    tasks: tuple[str, ...]
    if chosen.head == "none":
        lengths = _lengths(chosen, transform)
        pooling = Pooling((first := next(iter(lengths)),), (*lengths,))
        dim, tasks = lengths[first], ("embed",)
        what = f"pooling {first}; {dim} numbers per image"
    elif chosen.head == PROMPTED:
        prompt_text = text_of(folder, chosen.at, chosen.module)
        tasks, what = ("detect",), "finds what prompts name"
    else:
        labels = labels_of(chosen.config, chosen.values)
        if chosen.head == "image":
            tasks = tasks_of("image", labels, chosen.values, scores_pairs=False)
            what = f"{len(labels)} outputs, {', '.join(tasks)}"
        else:
            reading = reading_of(folder / chosen.at, chosen.named.__name__, len(labels))
            tasks, what = ("detect",), f"{len(labels)} labels ({reading}), detect"
    return chosen.directory(
        "image",
        tasks,
        labels=labels,
        embedding_dim=dim,
        transform=transform,
        transform_problem=problem,
        images=images,
        prompt_text=prompt_text,
        pooling=pooling,
        notes=(f"{CONFIG}: {chosen.named.__name__}, {what}", note),
    )


def caption_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that writes to an image.

    Raises:
        JobError: The directory is refused.
    """
    written = image_generation_facts(folder, chosen)
    images = images_of(chosen)._replace(height_px=written.image_px, width_px=written.image_px)
    transform, problem, note = read_transform(folder, chosen.at, images.num_channels)
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
    from pipeline.models.directories.image.image_modules import ImageTower

    name = chosen.named.__name__
    if wanted not in ("image", "text"):
        raise JobError(f"model.path: {name} takes images or texts, not {wanted}")
    if not hasattr(chosen.built, "get_text_features"):
        raise JobError(
            f"model.path: {CONFIG}: {name} is a language model that sees images, and how it takes "
            f"an image in a prompt is not known here; {FACTORY_ADVICE}"
        )
    # A bias beside the scale belongs to a loss with a sigmoid for each prompt.
    is_sigmoid = wanted == "image" and hasattr(chosen.module, "logit_bias")
    transform, problem, text, prompt_text, images = None, "", None, None, ImageContract()
    if wanted == "image":
        images = images_of(chosen)
        transform, problem, line = read_transform(folder, chosen.at, images.num_channels)
        notes: tuple[str, ...] = (line,)
        # Prompts need the tokenizer, and the scale of the comparison.
        if (folder / (chosen.at + TOKENIZER)).is_file() and hasattr(chosen.module, "logit_scale"):
            prompt_text = text_of(folder, chosen.at, chosen.module)
    else:
        text = text_of(folder, chosen.at, chosen.module)
        notes = text_notes(text)
    shape = _shape(chosen, ImageTower, transform)  # vectors of texts have the same length
    if len(shape) != _NUM_AXES:
        raise JobError(f"model.path: {CONFIG}: {name} gives no vector per image")
    dim = shape[1]
    return chosen.directory(
        wanted,
        ("embed", "zero_shot") if text or prompt_text else ("embed",),
        embedding_dim=dim,
        module=replace(chosen.facts, head=TOWERS),
        transform=transform,
        transform_problem=problem,
        images=images,
        text=text,
        prompt_text=prompt_text,
        scores="sigmoid" if is_sigmoid else None,
        notes=(
            f"{CONFIG}: {name}, {dim} numbers per {wanted}"
            + ("; scores of prompts are sigmoids" if is_sigmoid else ""),
            *notes,
        ),
    )


def _lengths(chosen: ModelClass, transform: TransformSpec | None) -> dict[str, int]:
    """Return the length of the vectors of each pooling of a class, the default first.

    Its configuration does not say that; so it runs, without numbers.

    Raises:
        JobError: It gives no vectors, or the images of a batch become one.
    """
    from pipeline.models.directories.image.image_modules import ImageModule

    name, lengths = chosen.built.__name__, {}
    if name.endswith("WithProjection"):
        modes: tuple[str, ...] = ("projection",)
    elif not _has_class_token(chosen):
        modes = ("pooler", "mean")
    else:
        modes = ("pooler", "cls", "mean") if name.endswith("VisionModel") else ("cls", "mean")
    for mode in modes:
        shape = _shape(chosen, partial(ImageModule, output=mode), transform)
        if shape and shape[0] != _NUM_ROWS:
            raise JobError(
                f"model.path: {CONFIG}: {name} gives no vector per image: it joins the images of a "
                "batch; it must treat each by itself"
            )
        if len(shape) == _NUM_AXES:  # CvT has a class token, but not in its map
            lengths[mode] = shape[1]
    if not lengths:
        raise JobError(f"model.path: {CONFIG}: {name} gives no vector per image")
    return lengths


def _shape(
    chosen: ModelClass, wrap: Callable[[Any], Any], transform: TransformSpec | None
) -> tuple[int, ...]:
    """Return the shape of what a class gives for two images, without numbers.

    Args:
        wrap: Makes the module that is run of the library's model.

    Returns:
        (): It has no such output.

    Raises:
        JobError: It does not run.
    """
    import torch

    part = getattr(chosen.config, "vision_config", chosen.config)
    side = getattr(part, "image_size", None) or _USUAL_PX
    sides = side if isinstance(side, list | tuple) else (side, side)
    if transform is not None and transform.has_one_size:
        sides = transform.height_px, transform.width_px
    pixels = (_NUM_ROWS, images_of(chosen).num_channels or 3, *sides)
    what = f"does not run {chosen.built.__name__}"
    with library_errors(what), torch.device("meta"), torch.inference_mode():
        try:
            return tuple(wrap(chosen.module.eval())(torch.ones(pixels)).shape)
        except AttributeError:  # no such output, or None
            return ()


def _has_class_token(chosen: ModelClass) -> bool:
    """Tell whether the first vector of a model of images stands for the whole image.

    BEiT and data2vec have a class token and were trained without it, if they say so.
    """
    names = [name for name, _ in chosen.module.named_parameters()]
    has_token = any(name.endswith(_CLASS_TOKENS) for name in names)
    return has_token and getattr(chosen.config, "use_mean_pooling", False) is not True


def images_of(chosen: ModelClass) -> ImageContract:
    """Return what the configuration of a class says of its images."""
    whole = chosen.config
    config = getattr(whole, "vision_config", None) or getattr(whole, "encoder", None) or whole
    return ImageContract(getattr(config, "num_channels", None))


def reading_of(folder: Path, name: str, num_labels: int) -> str:
    """Return how the logits of a detector are read, in words.

    Args:
        folder: The folder of its image processor.
        name: The detector, for messages.
        num_labels: The number of its class names.

    Raises:
        JobError: The library reads them in another way than task `detect`.
    """
    library = f"transformers {version('transformers')}"
    what = f"makes no image processor, whose post-processing says what outputs of {name} mean"
    with library_errors(what):
        processor = image_processor(folder)
    for more, words in enumerate(_READINGS):
        if _is_read_alike(processor, num_labels, num_labels + more):
            return words
    raise JobError(
        f"model.path: {library} reads boxes of {name} differently "
        f"({type(processor).__name__}.post_process_object_detection); return it from "
        "model.factory, with a model.postprocess"
    )


def _is_read_alike(processor: Any, num_labels: int, num_logits: int) -> bool:
    """Tell whether the library and task `detect` make the same boxes of random outputs."""
    import torch
    from transformers.utils import ModelOutput

    from pipeline.models.detection.boxes import best, candidates

    random = torch.Generator().manual_seed(0)
    outputs = ModelOutput(
        logits=torch.randn(_ROWS, _QUERIES, num_logits, generator=random) * 2,
        pred_boxes=torch.rand(_ROWS, _QUERIES, 4, generator=random),
    )
    try:
        theirs = processor.post_process_object_detection(
            outputs, threshold=_MIN_SCORE, target_sizes=[_PX] * _ROWS
        )
    except Exception:  # noqa: BLE001  # of the library: it wants other outputs
        return False
    ours = best(candidates(outputs, _ROWS, num_labels, _PX), _MIN_SCORE, _MOST, None)
    return all(map(_is_same, theirs, zip(*ours, strict=True)))


def _is_same(theirs: Mapping[str, torch.Tensor], ours: Sequence[torch.Tensor]) -> bool:
    """Tell whether the boxes of the library are our best boxes."""
    import torch

    order = theirs["scores"].argsort(descending=True)
    pairs = zip((theirs["boxes"], theirs["scores"], theirs["labels"]), ours, strict=True)
    return len(order) > 0 and all(
        torch.allclose(a[order].float(), b[: len(order)].float(), atol=1e-3) for a, b in pairs
    )
