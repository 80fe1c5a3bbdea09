"""Copy a seeded sample of a job's inputs into a folder, and spoilt files beside it.

The inputs are only read. What a job says of its source stays; what must differ so that it reads the
copy is handed back. Images and lines are copied one by one; of every other format whole shards.
"""

from __future__ import annotations

import itertools
import math
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.image_files import ImageFiles
from pipeline.sources.inputs import Inputs, list_inputs
from pipeline.sources.jsonl.format import Jsonl, max_json_bytes, read_json_blocks
from pipeline.sources.source_format import format_of
from pipeline.storage.store import Store, StoredFile

_SHARDS = 4
"""So many are copied of a format whose rows only reading counts."""
_FILES_AT_ONCE = 64
_EXTENT_ROWS = 256
_ROWS_PER_SPOILT, _MIN_SPOILT = 40, 5
_SPOILT, _SPOILT_LAST = "!chaos-", "~chaos-"
"""Begin the names of spoilt files: first, so that no limit of rows leaves them out; or last, where
the first lines declare the types."""
_FLIPPED_BYTES = 16
_TEXT = b"Not found: the upstream job wrote this page in place of a file.\n"
_IMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[: len(data) // 3],
    "zeros": lambda data: bytes(len(data)),
    "flipped": lambda data: (
        bytes(byte ^ 0xFF for byte in data[:_FLIPPED_BYTES]) + data[_FLIPPED_BYTES:]
    ),
    "text": lambda _: _TEXT,
    "empty": lambda _: b"",
}
_LINES = {
    "text": _TEXT,
    "truncated": b'{"truncated": "in a te\n',
    "list": b'["no object"]\n',
    "bytes": b'{"bytes": "\xff"}\n',
    "null": b"{}\n",
}
_CUT_BYTES = 100
"""What is left of a truncated shard: less than a header."""


@dataclass
class Sample:
    """What was copied; grows while it is taken."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the job's section `source` that must differ."""
    num_shards: int = 0
    """Of the user's own."""
    spoilt: dict[str, str] = field(default_factory=dict)
    """Row id of each spoilt row or shard -> what was done to it; all must be quarantined."""

    def place(self, path: str) -> Path:
        """Return where a file of the copy goes, its folder made.

        Raises:
            JobError: Its path leads out of the folder, as the key of an object may.
        """
        target = self.folder / path
        if ".." in target.parts:
            raise JobError(f"{path!r}: a path must stay below the source; no '..'")
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def spoil(self, path: str, data: bytes, what: str) -> None:
        """Write a file that must be quarantined whole."""
        self.place(path).write_bytes(data)
        self.spoilt[path] = what


def take_sample(source: Source, num_rows: int, seed: int, folder: Path) -> Sample:
    """Copy images, or shards that have about `num_rows` rows together.

    Raises:
        JobError: There is nothing to copy.
        PipelineError: The source cannot be read.
    """
    inputs = list_inputs(source, max_extent_rows=_EXTENT_ROWS)
    sample = Sample(folder, {"uri": str(folder), "storage_options": {}})
    if source.files is not None:
        sample.changes["files"] = None
    if source.has_uris:  # rows name images of the source, which are not copied
        sample.changes["uri_base"] = source.uri_base or inputs.root
        sample.changes["uri_roots"] = [inputs.root, *source.uri_roots]
    store, shards = Store(inputs.root, source.storage_options), _shuffled(inputs, seed)
    form = format_of(source)
    if isinstance(form, ImageFiles):
        _take_images(store, shards[:num_rows], seed, sample)
    elif isinstance(form, Jsonl):
        _take_lines(store, shards, source, num_rows, sample)
        _spoil_lines(max(_MIN_SPOILT, num_rows // _ROWS_PER_SPOILT), sample)
    else:
        _take_shards(store, shards, _counts(inputs), num_rows, sample)
        _spoil_shards(form.suffixes[0], sample)
    if not sample.num_shards:
        raise JobError(f"source.uri = {source.uri}: no rows there that could be copied")
    return sample


def _shuffled(inputs: Inputs, seed: int) -> list[StoredFile]:
    """Return the shards that fit the job, in seeded order."""
    fits = {extent.path for extent in inputs.extents if extent.reason is None}
    found = [shard for shard in inputs.shards if shard.path in fits]
    return random.Random(seed).sample(found, len(found))  # noqa: S311  # hides nothing


def _counts(inputs: Inputs) -> dict[str, int]:
    """Return path -> rows, 0 if only reading counts them."""
    counts: dict[str, int] = {}
    for extent in inputs.extents:
        counts[extent.path] = counts.get(extent.path, 0) + extent.num_rows
    return counts


def _take_images(store: Store, files: Sequence[StoredFile], seed: int, sample: Sample) -> None:
    """Copy images, and add spoilt copies of some."""
    chosen = sorted(file.path for file in files)
    number = max(_MIN_SPOILT, len(chosen) // _ROWS_PER_SPOILT)
    models: dict[str, bytes] = {}
    for first in range(0, len(chosen), _FILES_AT_ONCE):
        for path, data in store.read_many(chosen[first : first + _FILES_AT_ONCE]).items():
            if isinstance(data, FileNotFoundError):
                continue  # it vanished since it was listed
            if isinstance(data, Exception):
                raise data
            sample.place(path).write_bytes(data)
            sample.num_shards += 1
            if len(models) < number:
                models[path] = data
    for index, (kind, at, data) in enumerate(spoil_images(list(models.values()), number, seed)):
        model = PurePosixPath(list(models)[at])
        sample.spoil(str(model.with_name(f"{_SPOILT}{index:03d}-{kind}{model.suffix}")), data, kind)


def spoil_images(images: Sequence[bytes], number: int, seed: int) -> list[tuple[str, int, bytes]]:
    """Return spoilt copies of images: what was done, to which of them, and the bytes."""
    whole = [index for index, data in enumerate(images) if data]
    if not whole:
        return []
    dice = random.Random(seed)  # noqa: S311  # hides nothing
    kinds = [list(_IMAGES)[index % len(_IMAGES)] for index in range(number)]
    picked = [dice.choice(whole) for _ in kinds]
    return [(kind, at, _IMAGES[kind](images[at])) for kind, at in zip(kinds, picked, strict=True)]


def _take_shards(
    store: Store,
    shards: Sequence[StoredFile],
    counts: dict[str, int],
    num_rows: int,
    sample: Sample,
) -> None:
    """Copy whole shards, small ones first, until they have `num_rows` rows."""
    left = num_rows
    for shard in sorted(shards, key=lambda shard: shard.size_bytes):
        with store.open(shard.path) as handle, sample.place(shard.path).open("wb") as copy:
            shutil.copyfileobj(handle, copy)
        sample.num_shards += 1
        left -= counts[shard.path] or math.ceil(num_rows / _SHARDS)
        if left <= 0:
            return


def _take_lines(
    store: Store, shards: Sequence[StoredFile], source: Source, num_rows: int, sample: Sample
) -> None:
    """Copy the first lines of some shards as they are, but not compressed."""
    max_bytes, each = max_json_bytes(source), math.ceil(num_rows / min(_SHARDS, len(shards) or 1))
    for shard in shards[:_SHARDS]:
        with store.open(shard.path) as handle:
            found = (
                block.line(row).rstrip(b"\r\n") + b"\n"
                for block in read_json_blocks(handle, max_bytes)
                for row in range(len(block))
                if not block.broken and block.sizes[row] <= max_bytes
            )
            sample.place(shard.path).write_bytes(b"".join(itertools.islice(found, each)))
        sample.num_shards += 1


def _spoil_shards(suffix: str, sample: Sample) -> None:
    """Add a shard that is a text, an empty one, and one of which only the beginning is left."""
    some = next(path for path in sorted(sample.folder.rglob("*")) if path.is_file())
    with some.open("rb") as file:
        beginning = file.read(_CUT_BYTES)
    for kind, data in {"text": _TEXT, "empty": b"", "truncated": beginning}.items():
        sample.spoil(f"{_SPOILT}{kind}{suffix}", data, f"{kind} shard")


def _spoil_lines(number: int, sample: Sample) -> None:
    """Add a shard of lines of which no job can predict one, and a shard that has no lines."""
    kinds = [list(_LINES)[index % len(_LINES)] for index in range(number)]
    path = f"{_SPOILT_LAST}rows.jsonl"
    sample.place(path).write_bytes(b"".join(_LINES[kind] for kind in kinds))
    sample.spoilt |= {f"{path}#{row}": kind for row, kind in enumerate(kinds)}
    sample.spoil(f"{_SPOILT_LAST}zeros.jsonl", bytes(1000), "zeros shard")
