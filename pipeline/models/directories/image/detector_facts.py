"""What a snapshot of a detector of transformers says of its outputs.

The families are those whose own post-processing, `post_process_object_detection`, was read: it is
what task `detect` does with `logits` and `pred_boxes`. Each has as many logits as labels and takes
their sigmoids, but for the first ones, which have one more, for no object, and take the softmax.
"""

from __future__ import annotations

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.chosen import CONFIG, Chosen

_SOFTMAX = ("detr", "table-transformer", "yolos")
_SIGMOID = (
    *("conditional_detr", "d_fine", "dab-detr", "deformable_detr", "deimv2", "lw_detr"),
    *("rf_detr", "rt_detr", "rt_detr_v2"),
)
FAMILIES = (*_SOFTMAX, *_SIGMOID)
TASKS = ("detect",)


def detector_labels(chosen: Chosen) -> tuple[tuple[str, ...], str]:
    """Return the class names, and what is said of the outputs.

    Raises:
        JobError: It is a detector of another kind.
    """
    kind, config = chosen.values.get("model_type"), chosen.config
    if kind not in FAMILIES:
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
    how = "softmax, one more for no object" if kind in _SOFTMAX else "sigmoid"
    return labels, f"{len(labels)} labels ({how}), {', '.join(TASKS)}"
