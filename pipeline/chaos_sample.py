"""Copy a seeded sample of a job's inputs into a folder, and spoilt copies of some beside it.

The inputs are only read. What a job says of its source stays; what must differ so that it reads the
copy is handed back.
"""

from __future__ import annotations

import io
import math
import random
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pipeline.archive import Archive, Broken, open_archive
from pipeline.chaos_corrupt import spoil_images, spoil_rows, spoil_shards, to_parquet
from pipeline.errors import JobError
from pipeline.inputs import Inputs, list_inputs
from pipeline.job import Source
from pipeline.parquet_inputs import is_unreadable, open_parquet
from pipeline.storage import Store, StoredFile
from pipeline.tar import split_name

_MAX_SHARDS = 4
_FILES_AT_ONCE = 64
_EXTENT_ROWS = 256
_ROWS_PER_SPOILT, _LEAST_SPOILT = 40, 5
_SPOILT = "chaos-"


@dataclass
class Sample:
    """What was copied; grows while it is taken."""

    folder: Path
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of the job's section `source` that must differ."""
    num_rows: int = 0
    """Of the user's; rows of shards that could not be copied are not there."""
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


def take_sample(source: Source, num_rows: int, seed: int, folder: Path) -> Sample:
    """Copy about `num_rows` rows: whole image files, or the first rows of some shards.

    Raises:
        JobError: There is nothing to copy.
        PipelineError: The source cannot be read.
    """
    inputs = list_inputs(source, max_extent_rows=_EXTENT_ROWS)
    store = Store(inputs.root, source.storage_options)
    sample = Sample(folder, {"uri": str(folder)})
    if source.files is not None:
        sample.changes["files"] = None
    number = max(_LEAST_SPOILT, num_rows // _ROWS_PER_SPOILT)
    if source.format == "images":
        _take_images(store, inputs, num_rows, seed, number, sample)
    elif source.format == "parquet":
        _take_parquet(store, source, inputs, num_rows, seed, number, sample)
    else:
        _take_tars(store, source, inputs, num_rows, seed, number, sample)
    if not sample.num_rows:
        raise JobError(f"source.uri = {source.uri}: no rows there that could be copied")
    return sample


def _in_seeded_order(shards: Sequence[StoredFile], seed: int) -> list[StoredFile]:
    return random.Random(seed).sample(list(shards), len(shards))  # noqa: S311  # hides nothing


def _take_images(
    store: Store, inputs: Inputs, num_rows: int, seed: int, num_spoilt: int, sample: Sample
) -> None:
    chosen = sorted(file.path for file in _in_seeded_order(inputs.shards, seed)[:num_rows])
    names: list[str] = []
    images: list[bytes] = []
    for first in range(0, len(chosen), _FILES_AT_ONCE):
        for path, data in store.read_many(chosen[first : first + _FILES_AT_ONCE]).items():
            if isinstance(data, FileNotFoundError):
                continue  # it vanished since it was listed
            if isinstance(data, Exception):
                raise data
            sample.write(path, data)
            sample.num_rows += 1
            if len(names) < num_spoilt:
                names.append(path)
                images.append(data)
    sample.num_shards = sample.num_rows
    for index, (kind, at, data) in enumerate(spoil_images(images, num_spoilt, seed)):
        model = PurePosixPath(names[at])
        path = str(model.with_name(f"{_SPOILT}{index:03d}-{kind}{model.suffix}"))
        sample.write(path, data)
        sample.spoilt[path] = kind


def _take_parquet(
    store: Store,
    source: Source,
    inputs: Inputs,
    num_rows: int,
    seed: int,
    num_spoilt: int,
    sample: Sample,
) -> None:
    share = _share(inputs, num_rows)
    fits = {extent.path for extent in inputs.extents if extent.reason is None}
    for file in _in_seeded_order([shard for shard in inputs.shards if shard.path in fits], seed):
        table = _first_rows(store, file.path, min(share, num_rows - sample.num_rows))
        if table is None:
            continue
        sample.write(file.path, to_parquet(table))
        sample.num_rows += table.num_rows
        if not sample.num_shards:
            rows = spoil_rows(source, table, min(num_spoilt, table.num_rows), seed)
            _spoil_parquet(source, PurePosixPath(file.path).parent, table, rows, sample)
        sample.num_shards += 1
        if sample.num_rows >= num_rows:
            break
    if source.uri_column:
        base = source.uri_base or inputs.root
        sample.changes |= {"uri_base": base, "uri_roots": [*source.uri_roots, inputs.root]}


def _share(inputs: Inputs, num_rows: int) -> int:
    return math.ceil(num_rows / min(_MAX_SHARDS, max(1, len(inputs.shards))))


def _first_rows(store: Store, path: str, num_rows: int) -> pa.Table | None:
    """Return the first rows of a shard with all its columns; None where it cannot be read."""
    batches: list[pa.RecordBatch] = []
    try:
        with store.open(path) as handle:
            parquet = open_parquet(handle)
            for batch in parquet.iter_batches(batch_size=num_rows):
                batches.append(batch.slice(0, num_rows - sum(b.num_rows for b in batches)))
                if sum(b.num_rows for b in batches) >= num_rows:
                    break
            return pa.Table.from_batches(batches, parquet.schema_arrow) if batches else None
    except FileNotFoundError:
        return None
    except (pa.ArrowException, OSError) as error:
        if not is_unreadable(error):
            raise
        return None


def _spoil_parquet(
    source: Source, folder: PurePosixPath, table: pa.Table, rows: pa.Table | None, sample: Sample
) -> None:
    """Write spoilt rows as a shard of their own, in the same folder, and spoilt shards."""
    for kind, data in spoil_shards(to_parquet(table)).items():
        path = str(folder / f"{_SPOILT}{kind}.parquet")
        sample.write(path, data)
        sample.spoilt[path] = f"{kind} shard"
    if rows is None:
        return
    path = str(folder / f"{_SPOILT}rows.parquet")
    sample.write(path, to_parquet(rows))
    ids = [f"{path}#{index}" for index in range(rows.num_rows)]
    if source.id_column:
        ids = [str(value) for value in rows.column(source.id_column).to_pylist()]
    sample.spoilt |= dict.fromkeys(ids, "row")


def _take_tars(
    store: Store,
    source: Source,
    inputs: Inputs,
    num_rows: int,
    seed: int,
    num_spoilt: int,
    sample: Sample,
) -> None:
    share = _share(inputs, num_rows)
    images: list[bytes] = []
    for file in _in_seeded_order(inputs.shards, seed):
        wanted = min(share, num_rows - sample.num_rows)
        keys = list(_first_keys(store, file, wanted, source.max_image_bytes))
        if not keys:
            continue
        # Written plainly, whatever it was packed with.
        data, path = _to_tar(keys), f"{file.path.partition('.tar')[0]}.tar"
        sample.write(path, data)
        if not sample.num_shards:
            for kind, spoilt in spoil_shards(data).items():
                sample.write(f"{_SPOILT}{kind}.tar", spoilt)
                sample.spoilt[f"{_SPOILT}{kind}.tar"] = f"{kind} shard"
        sample.num_rows += len(keys)
        sample.num_shards += 1
        endings = tuple(f".{extension}" for extension in source.image_extensions)
        images += [b for key in keys for name, b in key.items() if name.endswith(endings)]
        del images[num_spoilt:]
        if sample.num_rows >= num_rows:
            break
    extension = source.image_extensions[0]
    spoilt_keys = []
    for index, (kind, _, data) in enumerate(spoil_images(images, num_spoilt, seed)):
        key = f"{_SPOILT}{index:03d}-{kind}"
        spoilt_keys.append({f"{key}.{extension}": data})
        sample.spoilt[f"{_SPOILT}rows.tar/{key}"] = kind
    if spoilt_keys:
        sample.write(f"{_SPOILT}rows.tar", _to_tar(spoilt_keys))


def _first_keys(
    store: Store, file: StoredFile, number: int, max_bytes: int
) -> Iterator[Mapping[str, bytes]]:
    """Yield the members of the first keys of a tar; a broken tar ends early."""
    key, members = "", dict[str, bytes]()
    with store.open(file.path) as raw:
        try:
            archive: Archive = open_archive(raw, file.size_bytes)
            while (member := archive.next_member()) is not None:
                named = split_name(member)
                if named is None or member.kind or member.size_bytes > max_bytes:
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


def _to_tar(keys: Sequence[Mapping[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in keys:
            for name, data in key.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
