"""Globs of paths: `*` and `?` stay within a segment, `**` is any number of segments."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from pipeline.core.errors import JobError

_CHARACTERS = re.compile(r"[*?\[]")


def is_glob(text: str) -> bool:
    """Tell whether a text has characters of a glob."""
    return _CHARACTERS.search(text) is not None


def split_glob(uri: str) -> tuple[str, str]:
    """Split a URI before its first segment with a glob character."""
    match = _CHARACTERS.search(uri)
    if match is None:
        return uri.rstrip("/") or "/", ""
    cut = uri.rfind("/", 0, match.start())
    return (uri[:cut] or "/", uri[cut + 1 :]) if cut >= 0 else (".", uri)


@functools.lru_cache(256)
def compiled(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a glob.

    Raises:
        JobError: `**` is a part of a segment.
    """
    from fsspec.utils import glob_translate

    try:
        return re.compile(glob_translate(pattern))
    except ValueError:
        raise JobError(
            f"source.uri: {pattern!r}: `**` has to be a whole segment, as in a/**/*.jpg"
        ) from None


def reaches_below(pattern: str, folder: Sequence[str]) -> bool:
    """Tell whether something below a folder, given by its segments, could match a glob."""
    parts = pattern.split("/")
    for part, name in zip(parts, folder, strict=False):
        if part == "**":  # which stands for the rest of the folder, too
            return True
        if not compiled(part).match(name):
            return False
    return len(parts) > len(folder)
