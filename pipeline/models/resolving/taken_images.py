"""Compare the images that a model takes with those that the transform gives, before a run."""

from __future__ import annotations

from pipeline.core.errors import JobError
from pipeline.job.transform_words import CHANNELS
from pipeline.models.directories.facts import ImageContract
from pipeline.preprocessing.images.transform import TransformSpec


def require_image_fits(name: str, taken: ImageContract, transform: TransformSpec) -> None:
    """Refuse a transform whose images the model does not take.

    Args:
        name: Of the model, for the message.
        taken: What it says.

    Raises:
        JobError: They differ; the message has both numbers.
    """
    count = transform.num_channels
    if taken.num_channels not in (None, count):
        channels = _plural(taken.num_channels or 0, "channel")
        names = [name for name, number in CHANNELS.items() if number == taken.num_channels]
        way = f"set transform.channels: {names[0]}" if names else "an image has 3, or 1 of gray"
        raise JobError(f"model: {name} takes {channels}, transform gives {count}: {way}")
    if not transform.has_one_size:
        _refuse_one_size(name, taken)
        return
    given = transform.height_px, transform.width_px
    wanted = tuple(
        have if want is None else want
        for have, want in zip(given, (taken.height_px, taken.width_px), strict=True)
    )
    if wanted != given:
        size = wanted[0] if wanted[0] == wanted[1] else [*wanted]
        raise JobError(
            f"model: {name} takes images of {wanted[0]} x {wanted[1]} px (height x width), "
            f"transform gives {given[0]} x {given[1]}: set transform.size_px: {size}"
        )


def _refuse_one_size(name: str, taken: ImageContract) -> None:
    """Refuse a model that takes one size for images that keep their sizes."""
    sides = taken.height_px, taken.width_px
    if sides != (None, None):
        height, width = ("any" if side is None else side for side in sides)
        size = height if height == width else [height, width]
        raise JobError(
            f"model: {name} takes images of {height} x {width} px (height x width), and images "
            f"keep their sizes: set transform.size_px: {size}"
        )


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
