"""Copy the images that rows name by URI, and let the rows name the copies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from pipeline.commands.chaos.corrupt_inputs import with_texts
from pipeline.sources.uris.column import uri_values
from pipeline.sources.uris.fetch import fetch_many
from pipeline.sources.uris.policy import FetchPolicy

CopyImages = Callable[[Sequence[str | None]], list[str | None]]
"""Takes the URIs of rows, None where a row names none; returns the paths of the copies."""


def copy_images(
    policy: FetchPolicy,
    prefix: str,
    write: Callable[[str, bytes], None],
    uris: Sequence[str | None],
) -> list[str | None]:
    """Fetch images and write them; what could not be fetched is missing in the copy, too.

    Args:
        policy: Of the job.
        prefix: What the paths of the copies begin with.
        write: Writes a file of the copy.
        uris: (N,).

    Returns:
        (N,): the paths, None where a row names no image.
    """
    paths: list[str | None] = []
    for index, fetched in enumerate(fetch_many(uris, policy)):
        path = f"{prefix}-{index:06d}"
        if fetched.data is not None:
            write(path, fetched.data)
        paths.append(None if uris[index] is None else path)
    return paths


def name_copies_in_table(table: pa.Table, name: str, copy: CopyImages) -> pa.Table:
    """Let the rows of a shard name copies; a column that holds no texts stays as it is."""
    return with_texts(table, name, copy(uri_values(table.column(name)))) or table


def name_copies_in_lines(lines: Sequence[bytes], name: str, copy: CopyImages) -> list[bytes]:
    """Let JSON lines name copies; lines that name no image stay as they are."""
    objects = [_as_object(line) for line in lines]
    given = [each.get(name) for each in objects]
    paths = copy([uri if isinstance(uri, str) else None for uri in given])
    return [
        line if path is None else json.dumps({**each, name: path}).encode() + b"\n"
        for line, each, path in zip(lines, objects, paths, strict=True)
    ]


def _as_object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
