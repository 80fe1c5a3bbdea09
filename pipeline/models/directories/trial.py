"""Run a class of transformers once on shapes alone: what its rows would fail on is said before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import CLIPS
from pipeline.models.directories.library import FACTORY_ADVICE, quiet, refused
from pipeline.models.generate.spec import WRITERS
from pipeline.preprocessing.texts.text_settings import IDS, MASK

if TYPE_CHECKING:
    import torch

_GIVES: Mapping[str, tuple[str, ...]] = {
    "detection": ("logits", "pred_boxes"),
    "none": ("last_hidden_state", "image_embeds", "text_embeds", "audio_embeds"),
}
"""Head -> outputs that are read: all of a detector, otherwise one; of other heads `logits`."""
_TOKENS, _USUAL_PX, _SAMPLES = 8, 224, 16_000


class Run(NamedTuple):
    """What a run of a class says of it."""

    is_done: bool
    """Whether it ran: some classes need sizes that their config has not."""
    width: int | None
    """Length of its vectors of texts, if it gives such."""


def require_run(
    module: Any, head: str, *, is_whole: bool, load: Callable[[], torch.nn.Module] | None
) -> Run:
    """Refuse a class that cannot run on its main input, or that a row changes.

    Args:
        module: Of transformers, on the device `meta`.
        head: As `LibraryClass.head`.
        is_whole: Whether it has all of its tensors; otherwise it is not refused if it cannot run.
        load: Loads it with its numbers, which some classes cannot run without; None: too many.

    Raises:
        JobError: It gives other outputs than are read, or computes another way from then on.
    """
    if hasattr(module, "get_image_features") or hasattr(module, "get_audio_features"):
        return Run(False, None)  # each tower runs by itself
    if head in WRITERS and is_whole:
        return Run(False, None)  # what it writes is compared with what the library writes
    cls, main = type(module), module.main_input_name
    ways, outputs = _ways(module), _outputs(module)
    # Torch raises a RuntimeError for what it needs numbers for.
    if isinstance(outputs, RuntimeError) and load is not None and main == IDS:
        module = load()
        ways, outputs = _ways(module), _outputs(module)
    if isinstance(outputs, Exception):
        is_known = not isinstance(outputs, RuntimeError) and "size" not in str(outputs)
        if is_known and is_whole and main not in CLIPS and head not in WRITERS:
            raise refused(outputs, f"cannot run {cls.__name__} on {main} alone") from outputs
        return Run(False, None)
    if head not in WRITERS:
        _require_outputs(cls, head, outputs)
    now = _ways(module)
    for key in ways.keys() & now.keys():
        if ways[key] != now[key]:
            raise JobError(
                f"model.path: config.json: {cls.__name__} turns {key} from {ways[key]} into "
                f"{now[key]} once it sees a short text, and then treats long ones so: put "
                f"{now[key]} into config.json, or take another model"
            )
    vectors = getattr(outputs, "last_hidden_state", None)
    return Run(True, None if vectors is None or main != IDS else vectors.shape[-1])


def _outputs(module: Any) -> Any:
    """Return what a module gives for its main input, or the error that it raises."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode  # of which a class asks no number

    is_empty = next(module.parameters()).is_meta
    with contextlib.ExitStack() as stack:
        stack.enter_context(quiet())
        stack.enter_context(torch.no_grad())
        if is_empty:
            stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            stack.enter_context(torch.device("meta"))
        try:
            return module.eval()(**_inputs(module))
        except Exception as error:  # noqa: BLE001  # of the library
            return error


def _inputs(module: Any) -> dict[str, torch.Tensor]:
    """Return the main input of two rows, on the device of the context."""
    import torch

    main, config = module.main_input_name, module.config
    if main == IDS:
        ids, config = torch.zeros(2, _TOKENS, dtype=torch.int64), config.get_text_config()
        end = np.ravel(getattr(config, "eos_token_id", None) or 0)[0]
        if 0 < end < getattr(config, "vocab_size", 0):
            ids[:, -1] = int(end)  # BART and T5 judge a text by the vector of its end
        return {main: ids, MASK: torch.ones_like(ids)}
    if main == "pixel_values":
        config = getattr(config, "vision_config", None) or getattr(config, "encoder", config)
        side = getattr(config, "image_size", None) or _USUAL_PX
        sides = side if isinstance(side, list | tuple) else (side, side)
        return {main: torch.zeros(2, getattr(config, "num_channels", None) or 3, *sides)}
    return {main: torch.zeros(2, _SAMPLES)}


def _require_outputs(cls: Any, head: str, outputs: Any) -> None:
    given = [*outputs] if hasattr(outputs, "keys") else [type(outputs).__name__]
    expected = _GIVES.get(head, ("logits",))
    has = [getattr(outputs, name, None) is not None for name in expected]
    if not (all if head == "detection" else any)(has):
        raise JobError(
            f"model.path: config.json: {cls.__name__} gives {', '.join(given)}, expected "
            f"{' and '.join(expected[:2]) if head == 'detection' else expected[0]}; "
            f"{FACTORY_ADVICE}"
        )


def _ways(module: torch.nn.Module) -> dict[str, str]:
    """Return the attributes that name a way of computing: name -> value."""
    return {
        f"{name}.{key}".lstrip("."): value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, str)
    }
