"""WebDataset: the members of a key of a tar are a row; only reading a tar counts its rows.

A key is a member's path up to the first dot of its base name; the rest, in lower case, is the
extension. A member that cannot be used makes a row with a reason; no link is followed, and nothing
is extracted. Which rows a tar has never depends on which of them are wanted.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import Numbers
from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, Reason
from pipeline.core.figures import READ
from pipeline.core.semantics import SEMANTICS
from pipeline.job.source import Source
from pipeline.sources.columns.pass_through import check_names
from pipeline.sources.formats.tar_archive import Archive, Member, open_archive
from pipeline.sources.rows import Reader, chosen, make_rows
from pipeline.sources.source_format import CountsRows, Measured, RowIds, SourceFormat
from pipeline.sources.units import Extent
from pipeline.sources.whole_file import Broken, open_sequential
from pipeline.storage.store import Store, StoredFile

MAX_VALUE_BYTES = 2**20
"""Size limit of a pass-through member; a larger one fails its row."""
NUMBERS = frozenset(["cls"])
"""Extensions of pass-through members that hold an integer; all others hold text."""
_NUMBER = re.compile(rb"\s*[+-]?[0-9]{1,19}\s*")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class TarSpec:
    """The members of a key that make its row."""

    image_extensions: tuple[str, ...]
    """The member with the first of these that a key has is its image or clip."""
    pass_through: tuple[str, ...]
    """Extensions of members whose content becomes columns of that name."""
    max_image_bytes: int
    what: str = "image"
    """The name of the input in messages."""


@dataclass(frozen=True)
class TarRow:
    """One row of a tar."""

    key: str | None
    """Unique in the tar; None for the row in place of the unreadable rest of the tar."""
    member: str
    image: bytes | None = None
    """The encoded image or clip; None if the row failed or is not wanted."""
    values: tuple[str | int | None, ...] = ()
    """One per pass-through extension, None if the key has no such member; empty if the row failed
    or is not wanted."""
    failure: Failure | None = None
    num_bytes: int = 0
    """Bytes of the row according to the headers, wanted or not."""


def column_type(extension: str) -> pa.DataType:
    """Return the type of the column that a pass-through member fills."""
    return pa.int64() if extension in NUMBERS else pa.string()


def iter_rows(
    handle: BinaryIO,
    spec: TarSpec,
    *,
    size_bytes: int,
    is_wanted: Callable[[int], bool] = lambda row: True,
) -> Iterator[TarRow]:
    """Yield the rows of a tar in order; only the members of one key are in memory.

    Args:
        handle: The file at its beginning, which is read forwards and must be seekable.
        spec: The members that make a row.
        size_bytes: Size of the file, for messages.
        is_wanted: Row number in the tar -> whether its content is needed; other rows are yielded
            without content, and their bodies are skipped.
    """
    keys = _Keys()
    group: _Group | None = None
    try:
        archive = open_archive(handle, size_bytes)
        while (member := archive.next_member()) is not None:
            if (named := split_name(member)) is None:
                continue
            if group is None or not group.takes(*named):
                if group is not None:
                    yield group.to_row()
                group = _Group(named[0], keys, spec, is_wanted)
            group.add(member, named[1], archive)
        if group is not None:
            yield group.to_row()
            group = None
        archive.check_rest()
    except Broken as error:
        if group is not None:
            yield group.to_row(cut=str(error))
        failure = Failure(Reason.UNREADABLE_SHARD, READ, str(error), num_bytes=size_bytes)
        yield TarRow(None, "", failure=failure)


def split_name(member: Member) -> tuple[str, str] | None:
    """Return key and extension; None for folders and files without extension."""
    name = member.name
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if member.is_folder:
        return None
    if stem and dot:
        return f"{folder}{slash}{stem}", extension.lower()
    return (name, "") if _problem(member) else None


def _problem(member: Member) -> str:
    """Return why a member is not read; '' for a plain file inside the archive."""
    if member.special:
        hint = {"a hard link": "; write the tar with --hard-dereference"}.get(member.special, "")
        return f"{member.name} is {member.special}{hint}"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"{member.name} points out of the archive"
    return ""


class _Keys:
    """Unique names of the rows of a tar; keeps 8 bytes per row."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self.num_rows = 0

    def claim(self, key: str) -> tuple[int, str, bool]:
        """Return the number and unique name of the next row, and whether the key is repeated."""
        row, name, is_repeated = self.num_rows, key, False
        self.num_rows += 1
        while (digest := _hash(name)) in self._seen:
            name, is_repeated = f"{name}@{row}", True
        self._seen.add(digest)
        return row, name, is_repeated


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class _Group:
    """The members of one key that have been read so far."""

    def __init__(
        self, key: str, keys: _Keys, spec: TarSpec, is_wanted: Callable[[int], bool]
    ) -> None:
        row, self._name, is_repeated = keys.claim(key)
        self._key, self._spec, self._is_wanted = key, spec, is_wanted(row)
        self._extensions: dict[str, None] = {}
        self._member = ""
        self._problem = ""
        if is_repeated:
            self._problem = (
                f"key {key} comes a second time: put the members of a key one after the other, "
                "each once"
            )
        self._rank = len(spec.image_extensions)
        self._image: bytes | None = None
        self._image_bytes = self._value_bytes = 0
        self._values: dict[str, str | int | None] = {}
        self._failures: dict[str, Failure] = {}
        """Extension of a value, or '' for the image -> failure."""

    def takes(self, key: str, extension: str) -> bool:
        """Tell whether a member belongs to this row; a repeated extension begins a new row."""
        return key == self._key and extension not in self._extensions

    def add(self, member: Member, extension: str, archive: Archive) -> None:
        """Add a member, with its body if it is needed."""
        self._extensions[extension] = None
        self._member = self._member or member.name
        self._problem = self._problem or _problem(member)
        if self._problem:
            self._image = None
        elif extension in self._spec.image_extensions[: self._rank]:
            self._rank = self._spec.image_extensions.index(extension)
            self._add_image(member, archive)
        elif extension in self._spec.pass_through:
            self._add_value(member, extension, archive)

    def _add_image(self, member: Member, archive: Archive) -> None:
        self._member, self._image_bytes = member.name, member.size_bytes
        self._image = None
        self._failures.pop("", None)
        limit = self._spec.max_image_bytes
        if member.size_bytes > limit:
            self._image_bytes = 0
            self._failures[""] = Failure(
                Reason.TOO_LARGE,
                READ,
                f"{member.size_bytes} bytes, the limit is {limit}",
                num_bytes=member.size_bytes,
            )
        elif self._is_wanted:
            self._image = archive.read_body()

    def _add_value(self, member: Member, extension: str, archive: Archive) -> None:
        if member.size_bytes > MAX_VALUE_BYTES:
            message = f"{member.name}: {member.size_bytes} bytes, the limit is {MAX_VALUE_BYTES}"
            self._failures[extension] = Failure(Reason.TOO_LARGE, READ, message)
            return
        self._value_bytes += member.size_bytes
        if not self._is_wanted:
            return
        try:
            self._values[extension] = _decode_value(archive.read_body(), extension)
        except ValueError as error:
            message = f"{member.name}: {error}"
            self._failures[extension] = Failure(Reason.BAD_SCHEMA, READ, message)

    def to_row(self, cut: str = "") -> TarRow:
        """Return the row; `cut` says why the archive ends after the last member, or is ''."""
        failure = self._judge(cut)
        is_good = failure is None and self._is_wanted
        return TarRow(
            self._name,
            self._member,
            self._image if is_good else None,
            tuple(self._values.get(name) for name in self._spec.pass_through) if is_good else (),
            failure,
            self._image_bytes + self._value_bytes,
        )

    def _judge(self, cut: str) -> Failure | None:
        if self._problem:
            return Failure(Reason.BAD_SCHEMA, READ, self._problem)
        is_whole = self._image is not None and all(
            name in self._values or name in self._failures for name in self._spec.pass_through
        )
        if cut and not is_whole:
            return Failure(Reason.TRUNCATED, READ, cut)
        if self._rank == len(self._spec.image_extensions):
            have = ", ".join(list(self._extensions)[:9])
            return Failure(Reason.MISSING, READ, f"no {self._spec.what} member; the key has {have}")
        return next((self._failures[name] for name in sorted(self._failures)), None)


def _decode_value(data: bytes, extension: str) -> str | int:
    """Decode a pass-through member.

    Raises:
        ValueError: It is not UTF-8, or not the integer that its extension promises.
    """
    if extension not in NUMBERS:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"is not text in UTF-8, at byte {error.start}") from None
    if not _NUMBER.fullmatch(data) or int(data) not in _INT64:
        raise ValueError("is not a whole number of 64 bits")
    return int(data)


_ROWS_AT_ONCE, _BYTES_AT_ONCE = 64, 2**22


@dataclass(frozen=True)
class TarRows:
    """Neighbouring rows of a tar."""

    reader: Reader
    extent: Extent
    rows: Sequence[TarRow]

    @property
    def sizes(self) -> Numbers:
        return np.array([row.num_bytes for row in self.rows], np.int64)

    @property
    def is_rest(self) -> bool:
        return any(row.key is None for row in self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, rows: slice | Numbers) -> TarRows:
        return replace(self, rows=chosen(self.rows, rows))

    def to_table(self) -> pa.Table:
        reader, path, rows = self.reader, self.extent.path, self.rows
        url = reader.store.url(path)
        values = {
            field.name: pa.array(
                [row.values[index] if row.values else None for row in rows], field.type
            )
            for index, field in enumerate(reader.pass_through)
        }
        return make_rows(
            reader,
            [path if row.key is None else f"{path}/{row.key}" for row in rows],
            [url + (f"#{row.member}" if row.key else "") for row in rows],
            {reader.fields.names[0]: [row.image for row in rows]},
            [row.failure for row in rows],
            values,
        )


class WebDataset(SourceFormat):
    """Tars, read from their beginning to their end."""

    name = "webdataset"
    counts_rows: CountsRows = "reading"
    # All compressed tars are listed, as one that cannot be read must not be skipped silently.
    suffixes = (
        *(".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst"),
    )
    semantics = SEMANTICS["webdataset"]
    # Other compressed tars cost their rows, with a message that names the cure.
    file_types = frozenset(["a tar", "gzip", "zstd"])
    fields = frozenset(["image_extensions", "audio_extensions", "pass_through"])

    def row_ids(self, source: Source) -> RowIds:
        return "key"

    def measure(
        self, store: Store, shards: Sequence[StoredFile], source: Source, *, max_extent_rows: int
    ) -> Measured:
        """Return one extent of unknown rows per tar.

        Raises:
            JobError: Row ids of two tars could be equal, or a pass-through name is no extension.
        """
        _check_apart(shards)
        extents = tuple(Extent(s.path, s.size_bytes, s.version, 0, 0, 0.0) for s in shards)
        return Measured(extents, _declare_members(source), fields=source.encoded.fields)

    def read(
        self, reader: Reader, extents: Sequence[Extent], is_wanted: Callable[[int], bool]
    ) -> Iterator[TarRows]:
        [extent] = extents
        source, names = reader.source, tuple(reader.source.passed.values())
        spec = TarSpec(source.extensions, names, source.max_image_bytes, source.encoded.name)
        rows, num_bytes = list[TarRow](), 0
        with open_sequential(reader.store, extent) as handle:
            for row in iter_rows(handle, spec, size_bytes=extent.size_bytes, is_wanted=is_wanted):
                is_full = len(rows) == _ROWS_AT_ONCE or num_bytes >= _BYTES_AT_ONCE
                if rows and (is_full or row.key is None):
                    yield TarRows(reader, extent, rows)
                    rows, num_bytes = [], 0
                rows.append(row)
                num_bytes += row.num_bytes
        if rows:
            yield TarRows(reader, extent, rows)


FORMAT = WebDataset()


def _declare_members(source: Source) -> pa.Schema:
    """Return the columns that members of tars fill.

    Raises:
        JobError: A name is no extension, or is one of the input.
    """
    check_names(source)
    for name in source.passed.values():
        if name != name.lower() or name.startswith(".") or name in source.extensions:
            raise JobError(
                f"source.pass_through: {name!r} is no extension of a member beside the input; "
                "write it in lower case, without the dot"
            )
    return pa.schema([(name, column_type(member)) for name, member in source.passed.items()])


def _check_apart(shards: Sequence[StoredFile]) -> None:
    """Refuse a tar that is also a folder of tars in an object store: row ids could be equal."""
    paths = {shard.path for shard in shards}
    for path in paths:
        if any(str(parent) in paths for parent in PurePosixPath(path).parents):
            raise JobError(f"source: {path} lies in a folder that is a tar as well; move it")
