"""The transform of a job: what the model says, changed by what the job says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.failures import TRANSFORM_FACTORY
from pipeline.core.printable import num_of
from pipeline.core.user_code.allowed_imports import require_allowed, source_digest
from pipeline.models.directories.facts import ImageContract
from pipeline.preprocessing.images.geometry import least_made_px, most_made_px
from pipeline.preprocessing.images.own_transform import check_factory
from pipeline.preprocessing.images.transform import CHANNELS, ONLY_WITH, TransformSpec, sides

if TYPE_CHECKING:
    from pipeline.job.transform import Transform

_OF_FACTORIES = ("size_px", "mean", "std")
"""What of the model's transform still holds with a factory."""
_NEEDED = ("size_px", "resize_px", "interpolation", "mean", "std")


def choose_transform(
    name: str,
    known: Mapping[str, Any] | None,
    wanted: Transform,
    problem: str = "",
    allow_import: Sequence[str] = (),
    max_image_px: int | None = None,
) -> TransformSpec:
    """Return the transform of a job.

    Args:
        name: Of the model, for messages.
        known: Fields of a TransformSpec that the model says.
        wanted: The job's section; its fields win.
        problem: Why the model says no others.
        allow_import: Prefixes of modules that `factory` may name.
        max_image_px: How many pixels an image may decode to; None: any number.

    Raises:
        JobError: Fields are missing, have no effect, or do not fit together; the factory is not
            allowed, or cannot be called; every image would be made larger than one may be.
    """
    spec = _chosen(name, known or {}, wanted, problem, allow_import)
    if max_image_px is not None and least_made_px(spec) > (most := most_made_px(max_image_px)):
        raise JobError(
            f"transform: {name} would get images of {least_made_px(spec)} px at least (size_px "
            f"{_shown(spec.size_px)}, resize_px {_shown(spec.resize_px)}), allowed are {most} "
            "(source.max_image_px)"
        )
    return spec


def _chosen(
    name: str,
    base: Mapping[str, Any],
    wanted: Transform,
    problem: str,
    allow_import: Sequence[str],
) -> TransformSpec:
    given = wanted.model_dump(exclude_defaults=True)
    if wanted.factory is not None:
        return _by_factory(name, wanted.factory, base, given, allow_import)
    resize = str(given.get("resize") or base.get("resize", "shortest"))
    for field, resizes in ONLY_WITH.items():
        if given.get(field) and resize not in resizes:
            raise JobError(
                f"transform.{field}: has no effect with resize {resize!r} of {name}; leave it out"
            )
    base = _still_valid(base, given, resize)
    if "size_px" in given and "resize_px" not in given and "resize_px" in base:
        # Keep the model's ratio of resize to crop.
        given["resize_px"] = _in_ratio(given["size_px"], base["size_px"], base["resize_px"])
    merged = {**base, **given}
    needed = [field for field in _NEEDED if resize in ONLY_WITH.get(field, (resize,))]
    if resize != "shortest" and "resize_px" in needed:
        needed.remove("resize_px")
    if resize == "none":
        needed.remove("size_px")
        merged.setdefault("size_px", None)
    missing = [field for field in needed if field not in merged]
    if missing:
        why = f" ({problem})" if problem else ""
        raise JobError(f"transform: {name} brings no transform{why}; give {', '.join(missing)}")
    return _made(merged)


def _made(fields: Mapping[str, Any]) -> TransformSpec:
    try:
        return TransformSpec.from_dict(fields)
    except ValueError as error:
        raise JobError(f"transform: {error}") from None


def _by_factory(
    name: str,
    factory: str,
    base: Mapping[str, Any],
    given: Mapping[str, Any],
    allow_import: Sequence[str],
) -> TransformSpec:
    """Return the transform of a job with a factory."""
    require_allowed(TRANSFORM_FACTORY, factory, allow_import)
    check_factory(factory, given.get("args", {}))
    code = source_digest(TRANSFORM_FACTORY, factory)
    kept = {key: base[key] for key in _OF_FACTORIES if key in base}
    merged = {"size_px": None, **kept, **given, "code_sha256": code}
    missing = [field for field in ("mean", "std") if field not in merged]
    if missing:
        raise JobError(
            f"transform: {name} brings no mean and std; give {', '.join(missing)}, one value for "
            "each channel that the factory returns"
        )
    return _made(merged)


def _still_valid(base: Mapping[str, Any], given: Mapping[str, Any], resize: str) -> dict[str, Any]:
    """Return the model's fields that still hold if the job changes the resize or the channels."""
    gone = {field for field, resizes in ONLY_WITH.items() if resize not in resizes}
    gets_size = base.get("size_px") is None and "size_px" in given
    if resize != base.get("resize", "shortest") or gets_size:
        gone.add("resize_px")
    channels = given.get("channels")
    if channels and len(base.get("mean", ())) != CHANNELS[channels]:
        gone |= {"mean", "std", "pad_value"}
    return {key: value for key, value in base.items() if key not in gone}


def _in_ratio(size: Any, old_size: Any, old_resize: Any) -> Any:
    if isinstance(size, int) and isinstance(old_size, int) and isinstance(old_resize, int):
        return round(size * old_resize / old_size)
    if isinstance(old_resize, int):
        return round(max(_pair(size)) * old_resize / max(_pair(old_size)))
    ratios = zip(_pair(size), _pair(old_size), _pair(old_resize), strict=True)
    return [round(side * resize / old) for side, old, resize in ratios]


def _shown(size: Any) -> str:
    return "none" if size is None else " x ".join(map(str, _pair(size)))


def _pair(size: Any) -> tuple[int, int]:
    return sides(tuple(size) if isinstance(size, list) else size)


def require_image_fits(name: str, taken: ImageContract, transform: TransformSpec) -> None:
    """Refuse a transform whose images the model does not take.

    Raises:
        JobError: They differ; the message has both numbers.
    """
    if problem := image_misfit(taken, transform):
        raise JobError(f"model: {name} takes {problem}")


def image_misfit(taken: ImageContract, transform: TransformSpec) -> str:
    """Say what a model takes and a transform does not give; '' if it does."""
    count = transform.num_channels
    if taken.num_channels not in (None, count):
        channels = num_of(taken.num_channels or 0, "channel")
        names = [name for name, number in CHANNELS.items() if number == taken.num_channels]
        way = f"set transform.channels: {names[0]}" if names else "an image has 3, or 1 of gray"
        return f"{channels}, transform gives {count}: {way}"
    taken_px = taken.height_px, taken.width_px
    if not transform.has_one_size:
        if taken_px == (None, None):
            return ""
        height, width = ("any" if side is None else side for side in taken_px)
        size = height if height == width else [height, width]
        return (
            f"images of {height} x {width} px (height x width), and images keep their sizes: set "
            f"transform.size_px: {size}"
        )
    given = transform.height_px, transform.width_px
    wanted = tuple(
        have if want is None else want for have, want in zip(given, taken_px, strict=True)
    )
    if wanted == given:
        return ""
    size = wanted[0] if wanted[0] == wanted[1] else [*wanted]
    return (
        f"images of {wanted[0]} x {wanted[1]} px (height x width), transform gives {given[0]} x "
        f"{given[1]}: set transform.size_px: {size}"
    )
