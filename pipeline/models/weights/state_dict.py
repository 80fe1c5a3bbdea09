"""Load the content of a weights file into a module: find its key, remove prefixes of wrappers.

Training scripts store weights under a key beside other data, and DataParallel and torch.compile put
a prefix before each name. A state that does not fit is refused with the most likely reason.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message, first_names

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of names from DataParallel and torch.compile."""
_DEPTH = 3
_SHOWN = 3
_MAX_KEYS = 8


def load_state(
    module: torch.nn.Module, held: Mapping[Any, Any], key: str | None, uri: str, name: str
) -> None:
    """Load the content of a weights file into a module; all tensors must fit.

    Args:
        key: `model.weights_key`, the key of the state dict in the file; a dot goes one level down.
        uri: The file, for messages.
        name: The model, for messages.

    Raises:
        JobError: Tensors are missing, superfluous or of other shapes, or under another key.
    """
    state = _at(held, key, uri)
    wanted = module.state_dict()
    if not any(map(_is_tensor, state.values())):
        raise JobError(_elsewhere(held, key, wanted, uri))
    if not all(isinstance(entry, str) for entry in state):
        raise JobError(f"{uri}: holds keys that are no text, expected names and tensors")
    bare = _without_wrappers(state, wanted)
    if bare is not state and bare.keys() == wanted.keys():
        log.info("%s: a prefix of a wrapper (%s) is left out", uri, next(iter(state)))
        state = bare
    loaded: Any = OrderedDict(state)
    # Safetensors have no versions of modules, and some need one to load (MNASNet).
    versions = {"": dict(version=module._version)}
    loaded._metadata = getattr(state, "_metadata", None) or versions
    try:
        module.load_state_dict(loaded, strict=True)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise JobError(f"{uri}: does not fit {name}: {_why(bare, wanted, error)}") from None


def _at(held: Mapping[Any, Any], key: str | None, uri: str) -> Mapping[Any, Any]:
    content: Any = held
    for part in [] if key is None else [key] if key in held else key.split("."):
        if not isinstance(content, Mapping) or part not in content:
            raise JobError(
                f"model.weights_key = {key!r}: {uri} has no such key; it holds {_keys(held)}"
            )
        content = content[part]
    if not isinstance(content, Mapping):
        raise JobError(
            f"model.weights_key = {key!r}: {uri} holds a {type(content).__name__} there, expected "
            "names and tensors"
        )
    return content


def _elsewhere(
    held: Mapping[Any, Any], key: str | None, wanted: Mapping[str, Any], uri: str
) -> str:
    """Return a message that names the key of the tensors, if there are any."""
    places = [
        (path, sum(name in wanted for name in _without_wrappers(state, wanted)))
        for path, state in _states(held, "", _DEPTH)
    ]
    most = max((num_fit for _, num_fit in places), default=0)
    best = [path for path, num_fit in places if num_fit == most]
    where = f"{uri} holds {_keys(held)}" if key is None else f"model.weights_key = {key!r}: {uri}"
    if not best:
        return f"{where}: no tensors by name, so no weights"
    names = " and under ".join(map(repr, best[:_SHOWN]))
    fit = f"{most} of {len(wanted)} keys fit"
    return f"{where}: the weights lie under {names} ({fit}): set model.weights_key: {best[0]}"


def _states(held: Mapping[Any, Any], path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Yield possible state dicts, each with its key."""
    for key, value in held.items():
        if not isinstance(value, Mapping) or not isinstance(key, str):
            continue
        inner = f"{path}.{key}" if path else key
        if (
            value
            and all(isinstance(name, str) for name in value)
            and any(map(_is_tensor, value.values()))
        ):
            yield inner, value
        elif depth > 1:
            yield from _states(value, inner, depth - 1)


def _without_wrappers(state: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state without prefixes that all its names have and the module's have not."""
    while prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in state)), None):
        if not state or any(name in wanted for name in state):
            break
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _why(state: Mapping[str, Any], wanted: Mapping[str, Any], error: Exception) -> str:
    """Return in one line what does not fit, with the most likely reason."""
    missing = [name for name in wanted if name not in state]
    extra = [name for name in state if name not in wanted]
    shapes = {
        name: (tuple(state[name].shape), tuple(tensor.shape))
        for name, tensor in wanted.items()
        if _is_tensor(state.get(name)) and _is_tensor(tensor) and state[name].shape != tensor.shape
    }
    problems = listed_problems(
        (missing, f"of {len(wanted)} tensors missing"),
        (extra, "unexpected"),
        ([f"{n} is {a}, not {b}" for n, (a, b) in shapes.items()], "of another shape"),
        ([n for n, value in state.items() if not _is_tensor(value)], "that are no tensors"),
    )
    if not problems:  # the module's own loading refused
        return clean_message(str(error))
    hint = ""
    if missing and extra:
        hint = _hint_of_prefix(missing, extra)
    elif not missing and not extra:
        heads = [(a[0], b[0]) for a, b in shapes.values() if a and b and a[1:] == b[1:]]
        if len(set(heads)) == 1 and len(heads) <= 2:
            hint = (
                f"the weights are for {heads[0][0]} outputs and the model is built for "
                f"{heads[0][1]} (a model by name has as many outputs as model.labels)"
            )
    return problems + (f": {hint}" if hint else "")


def _hint_of_prefix(missing: Sequence[str], extra: Sequence[str]) -> str:
    for prefix in dict.fromkeys(name.partition(".")[0] + "." for name in extra):
        if set(missing) <= {n.removeprefix(prefix) for n in extra if n.startswith(prefix)}:
            return (
                f"the file has {prefix!r} before the names; save them without it: "
                f"{{k.removeprefix({prefix!r}): v for k, v in state.items()}}"
            )
        if set(missing) <= {prefix + name for name in extra}:
            return f"the module has {prefix!r} before the names, the file has not"
    return "weights of another architecture?"


def listed_problems(*groups: tuple[Sequence[str], str]) -> str:
    """List the number of tensors that have each problem, and the first ones; '' if none has any."""
    return "; ".join(
        f"{len(names)} {problem} ({first_names(names)})" for names, problem in groups if names
    )


def _keys(held: Mapping[Any, Any]) -> str:
    return first_names(map(repr, held), _MAX_KEYS) or "nothing"


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)
