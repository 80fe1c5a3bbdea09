"""Code that is not ours: the modules a job may import, extensions of other packages, their errors.

A job names modules, and only those below prefixes that the command line allows are imported.
Installed distributions add to the registries; a digest of their code is part of the fingerprint.
The error of such code becomes one line: type, message, file and line; `--debug` shows the rest.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.environment import ALLOW_IMPORT
from pipeline.core.errors import JobError, PipelineError
from pipeline.core.registry import ENGINES, INPUTS, SOURCES, TASKS, get, target_of


def require_allowed(field: str, target: str, allow_import: Sequence[str]) -> None:
    """Check `package.module:callable` against the allowed prefixes.

    Args:
        field: The job's field, for messages.
        target: The value of the field.
        allow_import: Prefixes beside those of the environment variable PIPELINE_ALLOW_IMPORT.

    Raises:
        JobError: The form is wrong, or the prefix is not allowed; nothing was imported.
    """
    module_name, separator, attribute = target.partition(":")
    if not separator or not attribute.isidentifier() or attribute.startswith("_"):
        raise JobError(f"{field} = {target!r}: write package.module:callable")
    from_environment = os.environ.get(ALLOW_IMPORT, "").split(",")
    allowed = [prefix.strip() for prefix in (*allow_import, *from_environment) if prefix.strip()]
    if not any(module_name == p or module_name.startswith(p + ".") for p in allowed):
        raise JobError(
            f"{field} = {target!r}: importing {module_name} is not allowed; pass "
            f"--allow-import {module_name} or set {ALLOW_IMPORT}"
        )


def import_callable(field: str, target: str) -> Callable[..., Any]:
    """Import a target that `require_allowed` has accepted.

    Raises:
        JobError: It cannot be imported, or is not callable.
    """
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        reason = describe_user_error(error, module_name)
        raise JobError(f"{field} = {target!r}: cannot import: {reason}") from error
    build = getattr(module, attribute, None)
    if not callable(build):
        raise JobError(f"{field} = {target!r}: {module_name} has no callable {attribute}")
    return build  # type: ignore[no-any-return]  # checked when its result arrives


def source_digest(field: str, target: str) -> str:
    """Digest the source file of a module, without importing the module itself.

    Args:
        field: The job's field, for messages.
        target: `package.module:name`; packages around the module are imported.

    Raises:
        JobError: There is no such module, or it has no source file.
    """
    module_name = target.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except ModuleNotFoundError:  # its parent is not a package
        spec = None
    except Exception as error:  # a user's package may raise anything
        reason = describe_user_error(error, module_name)
        raise JobError(f"{field} = {target!r}: cannot import: {reason}") from error
    if spec is None:
        raise JobError(f"{field} = {target!r}: there is no module {module_name}")
    if spec.origin is None or not Path(spec.origin).is_file():
        raise JobError(
            f"{field} = {target!r}: {module_name} has no source file, so its changes go unnoticed"
        )
    return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()


def check_arguments(
    field: str, target: str, function: Callable[..., Any], args: Mapping[str, Any]
) -> None:
    """Check that a function accepts arguments by name, without calling it.

    Args:
        field: The job's field that names the function; the arguments of `SECTION.factory` are
            `SECTION.args`, those of another field `FIELD_args`.
        target: The value of the field, for messages.
        function: What was imported.
        args: Name -> value.

    Raises:
        JobError: Required arguments are missing, or there are some that it does not take.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in functions have no signature
        return
    section, _, last = field.rpartition(".")
    where = f"{section}.args" if last == "factory" else f"{field}_args"
    try:
        signature.bind(**args)
    except TypeError as error:
        raise JobError(
            f"{field} = {target!r}: {error}, with those of {where}; it takes {signature}"
        ) from None


_NOUNS = {SOURCES: "source", INPUTS: "input", TASKS: "task", ENGINES: "engine"}
_PASS = (PipelineError, OSError, MemoryError)
"""Errors that pass unchanged: ours, those of stores, which may be retried, and lack of memory."""


class ContractError(TypeError):
    """An extension violates its protocol; the message says what would be right."""


@contextlib.contextmanager
def extension_errors(group: str, name: str, *passing: type[Exception]) -> Iterator[None]:
    """Turn an error of the body into one line, if the body calls code of another distribution.

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
    """Return the noun for an entry of a group of the registry."""
    return _NOUNS[group]


def module_of(group: str, name: str) -> str:
    """Return the module of a name from another distribution; '' for a built-in name."""
    module = target_of(group, name).partition(":")[0]
    return "" if module.partition(".")[0] == __package__.partition(".")[0] else module


@functools.cache
def code_digest(group: str, name: str) -> str:
    """Digest the source of a name from another distribution; '' for a built-in name.

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


SHOW_ALL = "; --debug shows all"
"""The end of a message about an exception whose traceback has more."""
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)
_PACKAGE = Path(__file__).parents[1]
_SHIPPED = re.compile(rf"/(site-packages|dist-packages|py_modules/[^/]+)/{_PACKAGE.name}/")
"""The path of this package on another node, or in a folder of Ray."""
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib(64)?/python3|^<")
"""Paths of Python and of packages, on any machine."""
_MAX_CHARS = 300


def describe_user_error(error: BaseException, module: str = "") -> str:
    """Return `RuntimeError: message (net3.py line 27)`; without a place if no frame is user code.

    Args:
        error: As it was caught, with its traceback.
        module: Of the user's code, as the job names it: it may be an installed package.
    """
    return _line(type(error).__name__, _text_of(error), whereabouts(error, module))


def failed(field: str, target: str, error: BaseException) -> str:
    """Return the message that the target of a field of the job raised an exception.

    Args:
        field: Of the job.
        target: `package.module:callable`.
        error: As it was caught.
    """
    module = target.partition(":")[0]
    return f"{field} {target} failed: {describe_user_error(error, module)}{SHOW_ALL}"


def blame(who: str, error: BaseException, module: str, error_type: str) -> str:
    """Return a message such as `source 'csv' (csvkit.py line 41): KeyError: 'body'`.

    Args:
        who: The owner of the code.
        error: The error as it was caught.
        module: The module of the code; it may be an installed package.
        error_type: The name of the error; '' if its message is enough.
    """
    where = whereabouts(error, module)
    description = _line(error_type, _text_of(error), "")
    return f"{who}{f' ({where})' if where else ''}: {description}{SHOW_ALL}"


def whereabouts(error: BaseException, module: str = "") -> str:
    """Return file and line of the last frame in user code of an exception: `net3.py line 27`."""
    walk = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_filename, line) for frame, line in walk]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    return user_frame(frames, module)


def describe_remote_error(error: BaseException) -> str:
    """Return `describe_user_error` for an error of a Ray task, whose traceback is text."""
    cause = error
    while isinstance(inner := getattr(cause, "cause", None), BaseException):
        cause = inner
    frames = [(name, int(line)) for name, line in _FRAME.findall(_ANSI.sub("", _text_of(error)))]
    return _line(type(cause).__name__, _text_of(cause), user_frame(frames))


def user_frame(frames: list[tuple[str, int]], module: str = "") -> str:
    """Return file and line of the last frame in user code: `net3.py line 27`, or ''.

    Args:
        frames: Path and line, the outermost first.
        module: As `tell` has it.
    """
    for path, line in reversed(frames):
        if _is_users(Path(path).as_posix(), module):
            return f"{Path(path).name} line {line}"
    return ""


def _is_users(path: str, module: str) -> bool:
    if Path(path).is_relative_to(_PACKAGE) or _SHIPPED.search(path):
        return False
    name = Path(path).name
    top = module.partition(".")[0]
    is_named = bool(top) and (f"/{top}/" in path or name == f"{top}.py")
    standard = sysconfig.get_path("stdlib") + "/"
    return is_named or not (path.startswith(standard) or _LIBRARY.search(path))


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # the user's exception may itself be broken
        return ""


def _line(error_type: str, message: str, where: str) -> str:
    text = " ".join(_ANSI.sub("", message).split())
    if len(text) > _MAX_CHARS:
        text = text[:_MAX_CHARS] + "..."
    description = f"{error_type}: {text}" if error_type and text else error_type or text
    return f"{description} ({where})" if where else description
