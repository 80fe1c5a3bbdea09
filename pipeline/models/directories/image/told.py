"""Say in words what a transform does, as `pipeline plan` shows it."""

from __future__ import annotations

from pipeline.preprocessing.images.transform import TransformSpec


def told(spec: TransformSpec) -> str:
    """Say in words what a transform does."""
    size, aim = _px(spec.size_px), _px(spec.size_px if spec.resize_px is None else spec.resize_px)
    steps = {
        "shortest": f"resized to {aim} ({spec.interpolation})",
        "stretch": f"stretched to {aim} ({spec.interpolation})",
        "pad": f"fitted into {aim} ({spec.interpolation})",
        "none": "not resized",
    }[spec.resize]
    if spec.keeps_shape and isinstance(spec.resize_px, tuple):
        shorter, longest = spec.resize_px
        steps = (
            f"shorter side resized to {shorter} px, the longer to {longest} px at most "
            f"({spec.interpolation})"
        )
    elif spec.resize == "pad":
        steps += f", padded to {size}"
    elif spec.resize_px is not None or spec.resize == "none":
        steps += f", centre crop of {size}"
    return f"{steps}, gray" if spec.channels == "gray" else steps


def _px(size: int | tuple[int, int] | None) -> str:
    if size is None:
        return "their own size"
    return f"{size} px" if isinstance(size, int) else f"{size[0]} x {size[1]} px"
