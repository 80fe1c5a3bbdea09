"""Copy a seeded sample of a job's inputs into a folder, and spoilt copies of some beside it.

The inputs are only read. What a job says of its source stays; what must differ so that it reads the
copy is handed back.
"""

from __future__ import annotations

import functools
import io
import itertools
import math
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.commands.chaos.corrupt_inputs import (
    spoil_images,
    spoil_lines,
    spoil_rows,
    spoil_shards,
    to_parquet,
)
from pipeline.commands.chaos.named_images import (
    CopyImages,
    copy_images,
    name_copies_in_lines,
    name_copies_in_table,
)
from pipeline.core.errors import JobError
from pipeline.job.source import Source
from pipeline.sources.image_files import ImageFiles
from pipeline.sources.inputs import Inputs, list_inputs
from pipeline.sources.jsonl.format import Jsonl
from pipeline.sources.jsonl.stream import max_json_bytes, read_json_blocks
from pipeline.sources.parquet.footers import is_unreadable, open_parquet
from pipeline.sources.parquet.format import Parquet
from pipeline.sources.source_format import SourceFormat, format_of
from pipeline.sources.uris.policy import policy_of
from pipeline.sources.webdataset.format import WebDataset
from pipeline.sources.webdataset.rows import split_name
from pipeline.sources.webdataset.tar_archive import open_archive
from pipeline.sources.whole_file import Broken
from pipeline.storage.store import Store, StoredFile

_MAX_SHARDS = 4
_FILES_AT_ONCE = 64
_EXTENT_ROWS = 256
_ROWS_PER_SPOILT, _MIN_SPOILT = 40, 5
_SPOILT = "chaos-"
_FETCHED = "chaos-images"


@dataclass
class Sample:
    """What was copied; grows while it is taken."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the job's section `source` that must differ."""
    num_rows: int = 0
    """Of the user's own."""
    num_shards: int = 0
    spoilt: dict[str, str] = field(default_factory=dict)
    """Row id of each spoilt row or shard -> what was done to it; all must be quarantined."""

    def write(self, path: str, data: bytes) -> None:
        """Write a file of the copy.

        Raises:
            JobError: Its path leads out of the folder, as the key of an object may.
        """
        target = self.folder / path
        if ".." in target.parts:
            raise JobError(f"{path!r}: a path must stay below the source; no '..'")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


@dataclass(frozen=True)
class _Wish:
    """Which source to copy from, and how many rows."""

    source: Source
    inputs: Inputs
    num_rows: int
    seed: int

    @property
    def store(self) -> Store:
        return Store(self.inputs.root, self.source.storage_options)

    @property
    def num_spoilt(self) -> int:
        return max(_MIN_SPOILT, self.num_rows // _ROWS_PER_SPOILT)

    @property
    def rows_per_shard(self) -> int:
        return math.ceil(self.num_rows / min(_MAX_SHARDS, max(1, len(self.inputs.shards))))

    def shards(self) -> list[StoredFile]:
        """Return the shards that fit the job, in seeded order."""
        fits = {extent.path for extent in self.inputs.extents if extent.reason is None}
        found = [shard for shard in self.inputs.shards if shard.path in fits]
        return random.Random(self.seed).sample(found, len(found))  # noqa: S311  # hides nothing


def take_sample(source: Source, num_rows: int, seed: int, folder: Path) -> Sample:
    """Copy about `num_rows` rows: whole image files, or the first rows of some shards.

    Raises:
        JobError: There is nothing to copy.
        PipelineError: The source cannot be read.
    """
    inputs = list_inputs(source, max_extent_rows=_EXTENT_ROWS)
    sample = Sample(folder, {"uri": str(folder), "storage_options": {}})
    if source.files is not None:
        sample.changes["files"] = None
    if _copied_column(source):  # rows will name copies, which lie below the folder
        sample.changes["uri_base"] = None
    elif source.has_uris:  # rows name the images of the source, which are not copied
        sample.changes["uri_base"] = source.uri_base or inputs.root
        sample.changes["uri_roots"] = [inputs.root, *source.uri_roots]
    take_rows(format_of(source), _Wish(source, inputs, num_rows, seed), sample)
    if not sample.num_rows:
        raise JobError(f"source.uri = {source.uri}: no rows there that could be copied")
    return sample


def _copied_column(source: Source) -> str | None:
    """Return the column of URIs whose images are copied; not one of several, or inside others."""
    name = source.uri_column
    return None if name is None or "." in name or "[" in name else name


@functools.singledispatch
def take_rows(form: SourceFormat, wish: _Wish, sample: Sample) -> None:
    """Copy rows of a format: of one that nothing more is known of, whole shards.

    How many rows these have is known after the run; they count as one each.
    """
    suffix = form.suffixes[0]
    for shard in wish.shards()[:_MAX_SHARDS]:
        data = wish.store.read_bytes(shard.path)
        sample.write(shard.path, data)
        if not sample.num_shards:
            for kind, spoilt in spoil_shards(data).items():
                path = f"{_SPOILT}{kind}{suffix}"
                sample.write(path, spoilt)
                sample.spoilt[path] = f"{kind} shard"
        sample.num_shards += 1
        sample.num_rows += 1


@take_rows.register
def _take_images(_: ImageFiles, wish: _Wish, sample: Sample) -> None:
    """Copy the first images, and add spoilt copies of some."""
    chosen = sorted(file.path for file in wish.shards()[: wish.num_rows])
    models: dict[str, bytes] = {}
    for first in range(0, len(chosen), _FILES_AT_ONCE):
        for path, data in wish.store.read_many(chosen[first : first + _FILES_AT_ONCE]).items():
            if isinstance(data, FileNotFoundError):
                continue  # it vanished since it was listed
            if isinstance(data, Exception):
                raise data
            sample.write(path, data)
            sample.num_rows += 1
            if len(models) < wish.num_spoilt:
                models[path] = data
    sample.num_shards = sample.num_rows
    spoilt = spoil_images(list(models.values()), wish.num_spoilt, wish.seed)
    for index, (kind, at, data) in enumerate(spoilt):
        model = PurePosixPath(list(models)[at])
        path = str(model.with_name(f"{_SPOILT}{index:03d}-{kind}{model.suffix}"))
        sample.write(path, data)
        sample.spoilt[path] = kind


@take_rows.register
def _take_parquet(_: Parquet, wish: _Wish, sample: Sample) -> None:
    for shard in wish.shards():
        left = wish.num_rows - sample.num_rows
        table = _first_rows(wish.store, shard.path, min(wish.rows_per_shard, left))
        if table is None:
            continue
        if name := _copied_column(wish.source):
            table = name_copies_in_table(table, name, _copied_images(wish, sample))
        sample.write(shard.path, to_parquet(table))
        sample.num_rows += table.num_rows
        sample.num_shards += 1
        if sample.num_shards == 1:
            _spoil_parquet(wish, PurePosixPath(shard.path).parent, table, sample)
        if sample.num_rows >= wish.num_rows:
            break


def _first_rows(store: Store, path: str, num_rows: int) -> pa.Table | None:
    """Return the first rows of a shard with all its columns; None if it cannot be read."""
    batches: list[pa.RecordBatch] = []
    try:
        with store.open(path) as handle:
            parquet = open_parquet(handle)
            for batch in parquet.iter_batches(batch_size=num_rows):
                batches.append(batch.slice(0, num_rows - sum(each.num_rows for each in batches)))
                if sum(each.num_rows for each in batches) == num_rows:
                    break
            return pa.Table.from_batches(batches, parquet.schema_arrow) if batches else None
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        if not is_unreadable(error):
            raise
        return None


def _copied_images(wish: _Wish, sample: Sample) -> CopyImages:
    """Return what copies the images that the rows of the next shard name."""
    policy = policy_of(wish.source, wish.inputs.root)
    return partial(copy_images, policy, f"{_FETCHED}/{sample.num_shards:03d}", sample.write)


def _spoil_parquet(wish: _Wish, folder: PurePosixPath, table: pa.Table, sample: Sample) -> None:
    """Write spoilt shards, and spoilt rows as a shard of their own, in the folder of a good one."""
    for kind, data in spoil_shards(to_parquet(table)).items():
        path = str(folder / f"{_SPOILT}{kind}.parquet")
        sample.write(path, data)
        sample.spoilt[path] = f"{kind} shard"
    rows = spoil_rows(wish.source, table, min(wish.num_spoilt, table.num_rows), wish.seed)
    if rows is None:
        return
    path = str(folder / f"{_SPOILT}rows.parquet")
    sample.write(path, to_parquet(rows))
    ids = [f"{path}#{index}" for index in range(rows.num_rows)]
    if wish.source.id_column:
        ids = [str(value) for value in rows.column(wish.source.id_column).to_pylist()]
    sample.spoilt |= dict.fromkeys(ids, "row")


@take_rows.register
def _take_tars(_: WebDataset, wish: _Wish, sample: Sample) -> None:
    """Copy the first samples of each shard, and add spoilt shards and images."""
    endings = tuple(f".{extension}" for extension in wish.source.image_extensions)
    images: list[bytes] = []
    for shard in wish.shards():
        wanted = min(wish.rows_per_shard, wish.num_rows - sample.num_rows)
        keys = list(_first_keys(wish, shard, wanted))
        if not keys:
            continue
        data = _to_tar(keys)  # written plainly, however it was packed
        sample.write(f"{shard.path.partition('.tar')[0]}.tar", data)
        if not sample.num_shards:
            for kind, spoilt in spoil_shards(data).items():
                path = f"{_SPOILT}{kind}.tar"
                sample.write(path, spoilt)
                sample.spoilt[path] = f"{kind} shard"
        sample.num_rows += len(keys)
        sample.num_shards += 1
        images += [b for key in keys for name, b in key.items() if name.endswith(endings)]
        del images[wish.num_spoilt :]
        if sample.num_rows >= wish.num_rows:
            break
    _spoil_keys(wish, images, f"{_SPOILT}rows.tar", sample)


def _spoil_keys(wish: _Wish, images: Sequence[bytes], path: str, sample: Sample) -> None:
    keys = []
    for index, (kind, _, data) in enumerate(spoil_images(images, wish.num_spoilt, wish.seed)):
        key = f"{_SPOILT}{index:03d}-{kind}"
        keys.append({f"{key}.{wish.source.image_extensions[0]}": data})
        sample.spoilt[f"{path}/{key}"] = kind
    if keys:
        sample.write(path, _to_tar(keys))


def _first_keys(wish: _Wish, shard: StoredFile, number: int) -> Iterator[Mapping[str, bytes]]:
    """Yield the members of the first keys of a tar; a broken tar ends early."""
    key, members = "", dict[str, bytes]()
    with wish.store.open(shard.path) as raw:
        try:
            archive = open_archive(raw, shard.size_bytes)
            while (member := archive.next_member()) is not None:
                named = split_name(member)
                too_large = member.size_bytes > wish.source.max_image_bytes
                if named is None or member.kind or too_large:
                    continue
                if members and named[0] != key:
                    yield members
                    members, number = {}, number - 1
                    if not number:
                        return
                key = named[0]
                members[member.name] = archive.read_body()
        except Broken:
            return
    if members:
        yield members


@take_rows.register
def _take_lines(_: Jsonl, wish: _Wish, sample: Sample) -> None:
    """Copy the first lines of each shard, plain, and add a shard of bad lines and one of none."""
    max_bytes = max_json_bytes(wish.source)
    for shard in wish.shards():
        number = min(wish.rows_per_shard, wish.num_rows - sample.num_rows)
        with wish.store.open(shard.path) as handle:
            found = (
                block.line(row)
                for block in read_json_blocks(handle, max_bytes)
                for row in range(len(block))
                if not block.broken and block.sizes[row] <= max_bytes
            )
            lines = [line.rstrip(b"\r\n") + b"\n" for line in itertools.islice(found, number)]
        if name := _copied_column(wish.source):
            lines = name_copies_in_lines(lines, name, _copied_images(wish, sample))
        sample.write(shard.path, b"".join(lines))
        sample.num_rows += len(lines)
        sample.num_shards += 1
        if sample.num_rows >= wish.num_rows:
            break
    path = f"{_SPOILT}rows.jsonl"
    spoilt = spoil_lines(wish.num_spoilt)
    sample.write(path, b"".join(data for _, data in spoilt))
    sample.spoilt |= {f"{path}#{row}": kind for row, (kind, _) in enumerate(spoilt)}
    sample.write(f"{_SPOILT}zeros.jsonl", bytes(1000))
    sample.spoilt[f"{_SPOILT}zeros.jsonl"] = "zeros shard"


def _to_tar(keys: Sequence[Mapping[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in keys:
            for name, data in key.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
