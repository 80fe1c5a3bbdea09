"""How images become tensors for a job: the model's own transform, with what the job changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.preprocessing.transform import TransformSpec

if TYPE_CHECKING:
    from pipeline.job.transform import Transform


def merge_transform(
    name: str, default: TransformSpec | None, wanted: Transform, problem: str = ""
) -> TransformSpec:
    """Merge the model's transform and the job's, whose fields win.

    Args:
        name: The model, for messages.
        default: The model's own transform; None: it brings none.
        wanted: The job's transform section.
        problem: Why the model brings none, if that is known.

    Raises:
        JobError: A field is given by neither, or the fields do not fit together.
    """
    base: dict[str, Any] = default.to_dict() if default else {}
    base.setdefault("shrink_on_load", False)
    base.setdefault("jpeg_decoder", "cpu")
    given = {key: value for key, value in wanted.model_dump().items() if value is not None}
    if "size_px" in given and "resize_px" not in given and default:
        # Keep the model's ratio of resize to crop.
        given["resize_px"] = round(given["size_px"] * base["resize_px"] / base["size_px"])
    merged = {**base, **given}
    missing = [key for key in type(wanted).model_fields if key not in merged]
    if missing:
        why = f" ({problem})" if problem else ""
        raise JobError(f"transform: {name} brings no transform{why}; give {', '.join(missing)}")
    try:
        return TransformSpec.from_dict(merged)
    except ValueError as error:
        raise JobError(f"transform: {error}") from None
