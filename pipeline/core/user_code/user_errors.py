"""Tell an exception of the user's own code in one line: type, message, file and line.

What Ray and torch wrap around it is for `--debug`.
"""

from __future__ import annotations

import re
import sysconfig
import traceback
from pathlib import Path

SHOW_ALL = "; --debug shows all"
"""Ends a message about an exception whose traceback says more."""
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)
_PACKAGE = Path(__file__).parents[2]
_SHIPPED = re.compile(rf"/(site-packages|dist-packages|py_modules/[^/]+)/{_PACKAGE.name}/")
"""This package where it is installed on another node, or where Ray has put it."""
_LIBRARY = re.compile(r"/(site|dist)-packages/|/lib(64)?/python3|^<")
"""Of Python and of packages, on whatever machine."""
_MAX_CHARS = 300


def describe_user_error(error: BaseException, module: str = "") -> str:
    """Return `RuntimeError: message (net3.py line 27)`; without a place if none is the user's.

    Args:
        error: As it was caught, with its traceback.
        module: Of the user's code, as the job names it: it may be an installed package.
    """
    return _line(type(error).__name__, _text_of(error), whereabouts(error, module))


def failed(field: str, target: str, error: BaseException) -> str:
    """Say that what a field of the job names raised an exception.

    Args:
        field: Of the job.
        target: `package.module:callable`.
        error: As it was caught.
    """
    module = target.partition(":")[0]
    return f"{field} {target} failed: {describe_user_error(error, module)}{SHOW_ALL}"


def blame(who: str, error: BaseException, module: str, error_type: str) -> str:
    """Say that code raised: `source 'csv' (csvkit.py line 41): KeyError: 'body'`.

    Args:
        who: Whose code it is.
        error: As it was caught.
        module: Of the code; it may be an installed package.
        error_type: What the error is called; '': its message says all.
    """
    where = whereabouts(error, module)
    description = _line(error_type, _text_of(error), "")
    return f"{who}{f' ({where})' if where else ''}: {description}{SHOW_ALL}"


def whereabouts(error: BaseException, module: str = "") -> str:
    """Return file and line of the user's code that an exception passed last: `net3.py line 27`."""
    walk = traceback.walk_tb(error.__traceback__)
    frames = [(frame.f_code.co_filename, line) for frame, line in walk]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    return user_frame(frames, module)


def describe_remote_error(error: BaseException) -> str:
    """Return the same for an error of a Ray task, whose traceback crosses processes as text."""
    cause = error
    while isinstance(inner := getattr(cause, "cause", None), BaseException):
        cause = inner
    frames = [(name, int(line)) for name, line in _FRAME.findall(_ANSI.sub("", _text_of(error)))]
    return _line(type(cause).__name__, _text_of(cause), user_frame(frames))


def user_frame(frames: list[tuple[str, int]], module: str = "") -> str:
    """Return file and line of the last frame that is the user's: `net3.py line 27`, or ''.

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
    except Exception:  # noqa: BLE001  # a user's exception may be wrong itself
        return ""


def _line(error_type: str, message: str, where: str) -> str:
    text = " ".join(_ANSI.sub("", message).split())
    if len(text) > _MAX_CHARS:
        text = text[:_MAX_CHARS] + "..."
    description = f"{error_type}: {text}" if error_type and text else error_type or text
    return f"{description} ({where})" if where else description
