"""Extension points: built-in objects, and those of installed distributions, found by name.

The built-in entries of a group are the dict `REGISTRY` in the `__init__` of its package, name ->
`module:object`. Other distributions add entries to the groups of `_OPEN` by entry points of that
group. Only installed distributions count: a job file can name an entry, but cannot bring code.
Nothing is imported before it is asked for by its name.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

SOURCES, INPUTS = "pipeline.sources", "pipeline.preprocessing"
TASKS, RUNTIMES = "pipeline.tasks", "pipeline.runtimes"
ENGINES, GATES = "pipeline.engines", "pipeline.gates"
_OPEN = (SOURCES, INPUTS, TASKS, ENGINES)
_PACKAGES = {
    TASKS: "pipeline.models.tasks",
    RUNTIMES: "pipeline.inference.runtimes",
    ENGINES: "pipeline.inference.engines",
}
"""Group -> the package with its `REGISTRY`; other groups are named like their package."""
_MAX_CHARS = 300
_log = logging.getLogger(__name__)


def built_in(group: str) -> Mapping[str, str]:
    """Return name -> `module:object` of the built-in entries of a group."""
    entries: Mapping[str, str] = importlib.import_module(_PACKAGES.get(group, group)).REGISTRY
    return entries


def names(group: str) -> tuple[str, ...]:
    """Return all names of a group: the built-in ones in their order, then the installed ones."""
    first = tuple(built_in(group))
    return first + tuple(sorted({entry.name for entry in _installed(group)} - set(first)))


def _installed(group: str) -> EntryPoints:
    """Return the entries that other distributions add to a group."""
    return entry_points(group=group) if group in _OPEN else EntryPoints()


@functools.cache
def load(group: str, name: str) -> Any:
    """Return the object of a name; a distribution cannot replace a built-in name.

    Raises:
        KeyError: There is no such name.
        JobError: Two distributions have the name, or the object cannot be imported; one line that
            names the distribution.
    """
    value = built_in(group).get(name)
    if value is not None:
        return EntryPoint(name, value, group).load()
    entries = {entry.value: entry for entry in _installed(group).select(name=name)}
    if not entries:
        raise KeyError(name)
    if len(entries) > 1:
        owners = sorted(f"{value} of {_owner(entry)}" for value, entry in entries.items())
        raise JobError(f"{group} {name!r}: installed twice, as {' and as '.join(owners)}")
    [entry] = entries.values()
    try:
        return entry.load()
    except Exception as error:  # code of another distribution may raise anything
        reason = clean_message(f"{type(error).__name__}: {error}", _MAX_CHARS)
        raise JobError(
            f"{group} {name!r}: {entry.value} of {_owner(entry)} cannot be imported: {reason}"
        ) from error


def target_of(group: str, name: str) -> str:
    """Return the `module:object` of a name; '' if there is no such name."""
    value = built_in(group).get(name)
    if value is not None:
        return value
    return next((entry.value for entry in _installed(group).select(name=name)), "")


def get(group: str, name: str) -> Any:
    """Return the object of a name on any node, where a name that was checked before may be missing.

    Raises:
        JobError: There is no such name here; or as `load`.
    """
    try:
        return load(group, name)
    except KeyError:
        installed = ", ".join(names(group))
        raise JobError(f"no {group} {name!r} is installed here; there are {installed}") from None


def usable(group: str) -> Iterator[tuple[str, Any]]:
    """Yield each name with its object; skip a broken one with a warning."""
    for name in names(group):
        try:
            yield name, load(group, name)
        except JobError as error:
            _log.warning("%s; it is skipped", error)


def _owner(entry: EntryPoint) -> str:
    """Name the distribution that an entry point belongs to."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown distribution"
