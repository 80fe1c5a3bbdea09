"""Write and open the Parquet files of an output: staged slices, parts, sorted rows, tables of keys.

Their pages have checksums, which are verified whenever they are read. The names of files that only
runs read end with checksums of the footer and of all bytes.

A missing file raises FileNotFoundError, a failing store PipelineError.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.core.backoff import is_damage
from pipeline.core.errors import InfraError
from pipeline.core.printable import clean_message
from pipeline.storage.store import Store

_CHECKSUMS = re.compile(r"-[0-9a-z]{12}([0-9a-f]{8})([0-9a-f]{8})\.parquet$")
_TAIL_BYTES = 64 << 10
"""What Arrow reads of a file first; it mostly has the whole footer."""


class DamagedPart(InfraError):
    """The bytes of a file are not those that were written: it counts as not there."""


def write_file(buffer: io.BytesIO, schema: pa.Schema, **options: Any) -> pq.ParquetWriter:
    """Start a Parquet file whose pages have checksums; options: as `ParquetWriter`."""
    return pq.ParquetWriter(buffer, schema, write_page_checksum=True, **options)


@lru_cache(maxsize=16)
def leaf_types(schema: pa.Schema) -> dict[str, str]:
    """Return path -> physical type of the leaf columns of a schema: a nested column has several."""
    buffer = io.BytesIO()
    pq.write_table(schema.empty_table(), buffer)
    leaves = pq.ParquetFile(buffer).schema
    columns = [leaves.column(index) for index in range(len(leaves))]
    return {column.path: column.physical_type for column in columns}


def checksums(data: bytes) -> str:
    """Return the end of the name of a Parquet file: CRC-32 of its footer, and of all its bytes."""
    return f"{zlib.crc32(data[-_footer_bytes(data) :]):08x}{zlib.crc32(data):08x}"


@contextlib.contextmanager
def open_part(
    store: Store,
    path: str,
    *,
    data: bytes | None = None,
    size_bytes: int | None = None,
    footer: pq.FileMetaData | None = None,
    pre_buffer: bool = False,
) -> Iterator[pq.ParquetFile]:
    """Open a part: its footer is read, its rows are not.

    Args:
        store: The output.
        path: Path of the part.
        data: All its bytes, if they have been read.
        size_bytes: The size that it must have; None: any.
        footer: Its footer, if it has been read.
        pre_buffer: Read columns with few requests.

    Raises:
        DamagedPart: Its bytes are not those that were written; also raised where the body reads.
    """
    try:
        with store.open(path) if data is None else pa.BufferReader(data) as handle:
            num_bytes, expected = handle.seek(0, os.SEEK_END), _CHECKSUMS.search(path)
            if size_bytes not in (None, num_bytes):
                raise pa.ArrowInvalid(f"it has {num_bytes} bytes, its manifest says {size_bytes}")
            if expected and data is not None and zlib.crc32(data) != int(expected[2], 16):
                raise pa.ArrowInvalid("its bytes have another checksum")
            if footer is None:
                checksum = int(expected[1], 16) if expected else None
                footer = _read_footer(handle, num_bytes, checksum)
            yield pq.ParquetFile(
                handle,
                metadata=footer,
                pre_buffer=pre_buffer,
                page_checksum_verification=data is None or expected is None,  # else verified above
            )
    except Exception as error:
        if not is_damage(error):
            raise
        reason = clean_message(str(error) or repr(error), 200)
        raise DamagedPart(f"{store.url(path)}: is damaged ({reason})") from error


def _read_footer(handle: Any, size_bytes: int, checksum: int | None) -> pq.FileMetaData:
    tail, wanted = b"", _TAIL_BYTES
    for _ in range(2):  # a second time for a long footer
        if len(tail) < min(wanted, size_bytes):
            handle.seek(max(0, size_bytes - wanted))
            tail = handle.read()
            wanted = _footer_bytes(tail)
    footer = tail[-wanted:]
    if checksum is not None and zlib.crc32(footer) != checksum:
        raise pa.ArrowInvalid("its footer has another checksum")
    return pq.read_metadata(pa.BufferReader(footer))


def _footer_bytes(tail: bytes) -> int:
    """Return the size of a footer, with its length and the mark at its end."""
    return int.from_bytes(tail[-8:-4], "little") + 8


def find_damaged(store: Store, paths: Sequence[str]) -> dict[str, str]:
    """Read whole parts; return path -> message of those that are damaged."""
    damaged: dict[str, str] = {}
    for path in paths:
        try:
            with open_part(store, path, data=store.read_bytes(path)) as part:
                part.read()
        except DamagedPart as error:
            damaged[path] = str(error)
    return damaged


def read_columns(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a part, as far as it has them; None: all."""
    with open_part(store, path) as part:
        return part.read(columns=None if columns is None else list(columns))


def read_batches(
    store: Store, path: str, columns: Sequence[str], batch_rows: int
) -> Iterator[pa.RecordBatch]:
    """Read columns of a part, as far as it has them, at most `batch_rows` rows at a time.

    Row groups are read one by one, since each fits into memory.
    """
    with open_part(store, path) as part:
        for group in range(part.num_row_groups):
            yield from part.iter_batches(
                batch_size=batch_rows, row_groups=[group], columns=list(columns)
            )
