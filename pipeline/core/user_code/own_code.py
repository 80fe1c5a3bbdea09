"""Code of installed distributions that a registry brings: its errors in one line, and its digest.

Built-in code passes through unchanged: what it raises unexpectedly is a fault of this package.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.registry import ENGINES, INPUTS, SOURCES, TASKS, get, target_of
from pipeline.core.user_code.user_errors import blame

_NOUNS = {SOURCES: "source", INPUTS: "input", TASKS: "task", ENGINES: "engine"}
_PASS = (PipelineError, OSError, MemoryError)
"""Errors that say what they mean: ours, those of stores, which may be tried again, and memory."""


class ContractError(TypeError):
    """What an extension gives is not what its protocol says; the message says what would be."""


@contextlib.contextmanager
def extension_errors(group: str, name: str, *passing: type[Exception]) -> Iterator[None]:
    """Turn what the body raises into one line, if it calls the code of another distribution.

    Args:
        group: Of the registry.
        name: Of the entry; nothing happens for a built-in one.
        passing: Errors by which the code says something, as its protocol allows.

    Raises:
        JobError: `source 'csv' (csvkit.py line 41): KeyError: 'body'`, and how to see all.
    """
    known: tuple[type[Exception], ...] = (*_PASS, *passing)
    try:
        yield
    except known:
        raise
    except Exception as error:
        module = module_of(group, name)
        if not module:
            raise
        error_type = "" if isinstance(error, ContractError) else type(error).__name__
        raise JobError(blame(f"{noun_of(group)} {name!r}", error, module, error_type)) from error


def noun_of(group: str) -> str:
    """Return what a group of the registry has, in a word."""
    return _NOUNS[group]


def module_of(group: str, name: str) -> str:
    """Return the module that another distribution brings for a name; '' for one of this one's."""
    module = target_of(group, name).partition(":")[0]
    return "" if module.partition(".")[0] == __package__.partition(".")[0] else module


@functools.cache
def code_digest(group: str, name: str) -> str:
    """Digest the source of what another distribution brings; '' for a name of this one's.

    These are the file of the module that the entry point names, and that of the object's class;
    what they import is not looked at, as with factories.
    """
    module = module_of(group, name)
    if not module:
        return ""
    entry = get(group, name)
    owner = entry if isinstance(entry, type) else type(entry)
    files = [_file_of(module_name) for module_name in dict.fromkeys((module, owner.__module__))]
    digest = hashlib.sha256()
    for file in filter(None, files):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _file_of(module: str) -> Path | None:
    name = getattr(sys.modules.get(module), "__file__", None)
    return Path(name) if name and Path(name).is_file() else None
