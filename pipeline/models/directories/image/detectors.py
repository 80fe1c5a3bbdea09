"""What the outputs of a detector of transformers mean: its own post-processing is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.image.image_transform import image_processor

if TYPE_CHECKING:
    import torch

_READINGS = ("sigmoid", "softmax, one more for no object")
"""How task `detect` reads logits, by how many there are besides those of the labels."""
_ROWS, _QUERIES, _PX, _MIN_SCORE, _MOST = 2, 40, (480, 640), 0.05, 100


def reading_of(folder: Path, name: str, num_labels: int) -> str:
    """Return how the logits of a detector are read, in words.

    Args:
        folder: Of its image processor.
        name: Of the detector, for messages.
        num_labels: Its class names.

    Raises:
        JobError: The library reads them in another way than task `detect`.
    """
    library = f"transformers {version('transformers')}"
    try:
        processor = image_processor(folder)
    except Exception as error:
        reason = clean_message(f"{type(error).__name__}: {error}", 200)
        raise JobError(
            f"model.path: {library} makes no image processor, whose post-processing says what the "
            f"outputs of {name} mean: {reason}"
        ) from error
    for more, words in enumerate(_READINGS):
        if _is_read_alike(processor, num_labels, num_labels + more):
            return words
    raise JobError(
        f"model.path: {library} reads boxes of {name} in a way of its own "
        f"({type(processor).__name__}.post_process_object_detection); return it from "
        "model.factory, with a model.postprocess"
    )


def _is_read_alike(processor: Any, num_labels: int, num_logits: int) -> bool:
    """Tell whether the library and task `detect` make the same boxes of random outputs."""
    import torch
    from transformers.utils import ModelOutput

    from pipeline.models.detection.boxes import best
    from pipeline.models.detection.detector_outputs import candidates

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
    """Tell whether the boxes of the library are our best ones."""
    import torch

    order = theirs["scores"].argsort(descending=True)
    pairs = zip((theirs["boxes"], theirs["scores"], theirs["labels"]), ours, strict=True)
    return len(order) > 0 and all(
        torch.allclose(a[order].float(), b[: len(order)].float(), atol=1e-3) for a, b in pairs
    )
