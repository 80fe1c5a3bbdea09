"""Single files that a job names by URI: weights, labels, lists of shards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import JobError
from pipeline.storage.store import Store


def split_name(uri: str) -> tuple[str, str]:
    """Return the folder of a file, and its name there."""
    folder, _, name = uri.rpartition("/")
    return folder or ("/" if uri.startswith("/") else "."), name


def read_file(uri: str, storage_options: Mapping[str, Any], what: str) -> bytes:
    """Read a single file that the field `what` names.

    Raises:
        JobError: There is no such file.
    """
    folder, name = split_name(uri)
    try:
        return Store(folder, storage_options).read_bytes(name)
    except FileNotFoundError:
        raise JobError(f"{what} = {uri}: no such file") from None


def read_lines(uri: str, storage_options: Mapping[str, Any], what: str) -> list[str]:
    """Read the lines of a text file, without empty ones.

    Raises:
        JobError: There is no such file, or it is no text.
    """
    try:
        text = read_file(uri, storage_options, what).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JobError(f"{what} = {uri}: not UTF-8 text: {error}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]
