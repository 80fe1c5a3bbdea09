"""The user's own transform: a callable over decoded images, built by `transform.factory`.

It replaces resize and crop. Its result goes to the model unchanged, so the result is fully checked
here, and each message says what was returned and what is expected.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.failures import TRANSFORM_FACTORY, Reason
from pipeline.core.user_code import (
    check_arguments,
    describe_user_error,
    failed,
    import_callable,
)
from pipeline.preprocessing.images.transform import TransformSpec, Untransformable
from pipeline.process.liveness import no_limit

if TYPE_CHECKING:
    import torch

_CONTRACT = (
    "it is called with transform.args and must return a callable over an image, uint8 tensor "
    "(3, H, W); see jobs/README.md, A transform of your own"
)
_MEMORY_WORDS = ("out of memory", "allocate memory")

_TRIED_PX = (240, 320)

Step = Callable[["torch.Tensor"], Any]
"""Decoded image, RGB uint8 (3, H, W) -> the result of the user's code."""


def load_step(factory: str, args: Mapping[str, Any]) -> Step:
    """Import a factory, whose module must be allowed already, and call it.

    Args:
        factory: `package.module:callable`.
        args: Its arguments, by name.

    Raises:
        JobError: It cannot be imported or called, or does not return a callable.
    """
    build = check_factory(factory, args)
    try:
        step = build(**copy.deepcopy(dict(args)))
    except Exception as error:  # the user's code may raise anything
        raise JobError(failed(TRANSFORM_FACTORY, factory, error)) from error
    if not callable(step):
        type_name = type(step).__name__
        raise JobError(f"{TRANSFORM_FACTORY} = {factory!r}: {_CONTRACT}; it returned {type_name}")
    return step  # type: ignore[no-any-return]  # its results are checked


def check_factory(factory: str, args: Mapping[str, Any]) -> Callable[..., Any]:
    """Import a factory and check its arguments; return it.

    Raises:
        JobError: It cannot be imported, or cannot be called with these arguments.
    """
    build = import_callable(TRANSFORM_FACTORY, factory)
    if not isinstance(build, type) and hasattr(build, "forward"):
        raise JobError(
            f"{TRANSFORM_FACTORY} = {factory!r}: is a transform itself ({type(build).__name__}); "
            "name a function that returns it"
        )
    check_arguments(TRANSFORM_FACTORY, factory, build, args)
    return build


def transform_with_factory(seen: object) -> TransformSpec | None:
    """Return the transform of an input if it has a factory, otherwise None."""
    spec = getattr(seen, "transform", None)
    return spec if isinstance(spec, TransformSpec) and spec.factory is not None else None


def step_of(spec: TransformSpec, number: int = 0) -> Step:
    """Return the callable of a transform, made once in this process.

    Args:
        spec: A transform with a factory.
        number: Number of the calling thread: no two threads share a callable.

    Raises:
        JobError: As `load_step`.
    """
    assert spec.factory is not None, "the caller has asked"
    return _step(spec.factory, json.dumps(dict(spec.args), sort_keys=True), number)


@functools.cache
def _step(factory: str, args: str, number: int) -> Step:
    with no_limit():  # importing a library may take longer than a row may
        return load_step(factory, json.loads(args))


def transform_by(
    step: Step, image: torch.Tensor, spec: TransformSpec, max_px: int | None = None
) -> torch.Tensor:
    """Transform an image by the user's own code.

    Args:
        step: The callable (`step_of`).
        image: RGB uint8 (3, H, W); may be changed.
        spec: Declares the size and the number of channels.
        max_px: The most pixels of a result; None: any number.

    Returns:
        uint8 (C, H', W') on the CPU.

    Raises:
        Untransformable: The code raised, or its result is not as declared.
    """
    import torch

    assert spec.factory is not None, "the caller has asked"
    try:
        with torch.no_grad():
            made = step(image)
    except Exception as error:
        module = spec.factory.partition(":")[0]
        raise Untransformable(
            _reason_of(error), _message(spec, describe_user_error(error, module))
        ) from error
    problem = _problem(made, spec)
    if problem:
        raise Untransformable(Reason.DECODE_ERROR, _message(spec, problem))
    num_px = made.shape[-2] * made.shape[-1]
    if max_px is not None and num_px > max_px:
        text = f"returned {_shape(made)}, {num_px} px, allowed are {max_px} (source.max_image_px)"
        raise Untransformable(Reason.TOO_LARGE, _message(spec, text))
    return made  # type: ignore[no-any-return]  # `_problem` has checked it


def try_step(spec: TransformSpec) -> str:
    """Try the user's code over a generated image; return a line that begins with ok or warn.

    Raises:
        JobError: As `load_step`.
    """
    import torch

    height_px, width_px = _TRIED_PX
    rows, columns = torch.arange(height_px)[:, None], torch.arange(width_px)[None]
    planes = (rows + 0 * columns, 0 * rows + columns, rows + columns)
    image = torch.stack([plane % 256 for plane in planes], dim=-1).to(torch.uint8).permute(2, 0, 1)
    what = f"a generated image of {width_px} x {height_px} px"
    try:
        made = transform_by(step_of(spec), image, spec)
    except Untransformable as error:
        return f"warn: of {what}: {error}"
    return f"ok: {spec.factory} makes {_shape(made)} of {what}"


def _reason_of(error: Exception) -> Reason:
    text = str(error).lower()
    is_memory = isinstance(error, MemoryError) or any(word in text for word in _MEMORY_WORDS)
    return Reason.OUT_OF_MEMORY if is_memory else Reason.DECODE_ERROR


def _message(spec: TransformSpec, what: str) -> str:
    return f"{TRANSFORM_FACTORY} {spec.factory}: {what}"


def _problem(made: Any, spec: TransformSpec) -> str:
    """Return the problem of a result and what is expected; '' if there is none."""
    import torch

    size = (spec.height_px, spec.width_px) if spec.has_one_size else None
    expected = ", ".join(map(str, (spec.num_channels, *(size or ("H", "W")))))
    if not isinstance(made, torch.Tensor):
        given = f"{type(made).__module__.partition('.')[0]}.{type(made).__name__}"
    else:
        is_image = made.ndim == 3 and made.numel() and made.shape[0] == spec.num_channels
        is_plain = made.dtype == torch.uint8 and made.device.type == "cpu"
        has_size = size is None or tuple(made.shape[1:]) == size
        if is_image and is_plain and has_size and made.layout == torch.strided:
            return ""
        dtype = str(made.dtype).removeprefix("torch.")
        given = f"{dtype} {_shape(made)} on {made.device}, {made.layout}"
    return (
        f"returned {given}, expected a uint8 tensor ({expected}) on the CPU: one image, channels "
        "first, as many as transform.mean has, of transform.size_px; it is normalised later, so "
        "leave out ToDtype and Normalize"
    )


def _shape(made: torch.Tensor) -> str:
    return f"({', '.join(map(str, made.shape))})"
