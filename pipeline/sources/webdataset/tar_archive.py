"""Walk the members of a tar stream in order; a body is read only on request.

The standard library parses single headers, but does not walk here: its walk takes a damaged header
for the end of the archive, so the rows behind it would be lost silently, and it reads extended
headers of any size into memory. Nothing is ever extracted, and no link is followed.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.sources.whole_file import Broken

MAX_GZIP_BYTES = 64 * 2**20
"""Size limit of a gzipped tar: each resume inflates it from its beginning."""
MAX_INFLATED_BYTES = 2**29
_BLOCK_BYTES = 512
_CHUNK_BYTES = 2**20
_MAX_EXTENDED_BYTES = 2**20
_MAX_MEMBER_BYTES = 2**62
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_GZIP_MAGIC = b"\x1f\x8b"
_PAX_ENTRY = re.compile(rb"(\d{1,9}) ([^=]+)=")
_NAMES = frozenset([tarfile.GNUTYPE_LONGNAME])
_PAX = frozenset([tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE])
_IGNORED = frozenset([tarfile.GNUTYPE_LONGLINK, tarfile.XGLTYPE])
_FOLDERS = frozenset([tarfile.DIRTYPE, b"D", b"V"])
_LINKS_AND_DEVICES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a fifo",
}
_WITHOUT_BODY = frozenset([*_LINKS_AND_DEVICES, tarfile.DIRTYPE])


@dataclass(frozen=True)
class Member:
    """The header of a member; the name is the stored one, as text."""

    name: str
    size_bytes: int
    is_folder: bool = False
    kind: str = ""
    """Empty for a plain file, otherwise a description: a link, a device, a sparse file."""


def open_archive(handle: BinaryIO, size_bytes: int) -> Archive:
    """Start reading a tar, through gzip if its size is below the limit.

    Raises:
        Broken: It is compressed in another way, too large for gzip, or damaged gzip.
    """
    head = handle.read(8)
    handle.seek(0)
    if not head:
        raise Broken("the file is empty")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise Broken(f"compressed tar ({name}) of {size_bytes} bytes: recompress as plain tar")
    if not head.startswith(_GZIP_MAGIC):
        return Archive(handle)
    if size_bytes > MAX_GZIP_BYTES:
        raise Broken(
            f"compressed tar of {size_bytes} bytes: recompress as plain tar (gzip up to "
            f"{MAX_GZIP_BYTES} bytes is read as it is)"
        )
    return Archive(_inflate(handle.read(MAX_GZIP_BYTES)))


def _inflate(data: bytes) -> BinaryIO:
    """Return a reader of gzipped data that has been checked to the end.

    The data are inflated twice: where damage is found must not depend on which bytes are skipped.
    """
    inflated_bytes = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as checked:
            while chunk := checked.read(_CHUNK_BYTES):
                inflated_bytes += len(chunk)
                if inflated_bytes > MAX_INFLATED_BYTES:
                    raise Broken(
                        f"compressed tar of {len(data)} bytes that inflates to more than "
                        f"{MAX_INFLATED_BYTES}: recompress as plain tar"
                    )
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Broken(f"damaged gzip: {error}") from None
    return cast(BinaryIO, gzip.GzipFile(fileobj=io.BytesIO(data)))


class Archive:
    """A tar that is read forwards."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        self._position = 0
        self._body_bytes = 0
        self._padding_bytes = 0

    def next_member(self) -> Member | None:
        """Return the next member; None at the end mark of the archive.

        Raises:
            Broken: The archive ends without its end mark, or a header is damaged.
        """
        self._skip(self._body_bytes)
        self._body_bytes = 0
        self._skip(self._padding_bytes)
        self._padding_bytes = 0
        extended: dict[str, bytes] = {}
        while True:
            block = self._read_block()
            if block is None:
                if extended:
                    raise self._damaged()
                return None
            info = self._parse(block)
            if info.type in _NAMES:
                extended["path"] = self._read_extended(info.size).split(b"\0", 1)[0]
            elif info.type in _PAX:
                extended.update(self._parse_pax(self._read_extended(info.size)))
            elif info.type in _IGNORED:
                self._read_extended(info.size)
            else:
                return self._begin(info, block, extended)

    def read_body(self) -> bytes:
        """Read the whole body of the current member.

        Raises:
            Broken: The archive ends inside.
        """
        data = self._handle.read(self._body_bytes)
        if len(data) < self._body_bytes:
            raise self._ends("inside a member")
        self._position += len(data)
        self._body_bytes = 0
        return data

    def check_rest(self) -> None:
        """Check that only padding follows the end mark.

        Raises:
            Broken: Data follow, as in concatenated tars.
        """
        end = self._position
        while chunk := self._read(_CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise Broken(
                    f"data after the end of the archive at byte {end}: concatenated tars must be "
                    "joined as `tar --concatenate` does, or stay apart"
                )

    def _begin(self, info: tarfile.TarInfo, block: bytes, extended: dict[str, bytes]) -> Member:
        is_sparse = any(name.startswith("GNU.sparse.") for name in extended)
        if info.type == tarfile.GNUTYPE_SPARSE:
            is_sparse = True
            self._skip_sparse_map(block)
        size_bytes = info.size
        if digits := extended.get("size"):
            if not digits.isdigit() or len(digits) > 19:
                raise self._damaged()
            size_bytes = int(digits)
        if info.type in _WITHOUT_BODY:
            size_bytes = 0
        if not 0 <= size_bytes <= _MAX_MEMBER_BYTES:
            raise self._damaged()
        self._body_bytes = size_bytes
        self._padding_bytes = -size_bytes % _BLOCK_BYTES
        raw = extended.get("GNU.sparse.name") or extended.get("path")
        name = to_text(info.name if raw is None else raw.decode("utf-8", "surrogateescape"))
        is_folder = info.type in _FOLDERS or name.endswith("/")
        return Member(name, size_bytes, is_folder, _kind(info, is_sparse=is_sparse))

    def _parse(self, block: bytes) -> tarfile.TarInfo:
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError):
            raise self._damaged() from None

    def _parse_pax(self, body: bytes) -> dict[str, bytes]:
        entries: dict[str, bytes] = {}
        position = 0
        while position < len(body) and body[position]:
            match = _PAX_ENTRY.match(body, position)
            end = position + int(match[1]) if match else 0
            if match is None or not match.end() < end <= len(body) or body[end - 1] != 0x0A:
                raise self._damaged()
            entries[match[2].decode("utf-8", "replace")] = body[match.end() : end - 1]
            position = end
        return {name: value for name, value in entries.items() if value}

    def _read_extended(self, size_bytes: int) -> bytes:
        if not 0 <= size_bytes <= _MAX_EXTENDED_BYTES:
            raise self._damaged()
        data = self._read(size_bytes + -size_bytes % _BLOCK_BYTES)
        if len(data) < size_bytes:
            raise self._ends("inside an extended header")
        return data[:size_bytes]

    def _skip_sparse_map(self, block: bytes) -> None:
        is_extended = bool(block[482])
        while is_extended:
            more = self._read(_BLOCK_BYTES)
            if len(more) < _BLOCK_BYTES:
                raise self._ends("inside a header")
            is_extended = bool(more[504])

    def _read_block(self) -> bytes | None:
        """Read the next header; None for the zeros that end an archive."""
        block = self._read(_BLOCK_BYTES)
        if not block:
            raise self._ends("without an end mark: what came after is lost")
        if len(block) < _BLOCK_BYTES:
            raise self._ends("inside a header") if self._position > len(block) else self._damaged()
        return block if block.strip(b"\0") else None

    def _read(self, num_bytes: int) -> bytes:
        data = self._handle.read(num_bytes)
        self._position += len(data)
        return data

    def _skip(self, num_bytes: int) -> None:
        """Skip bytes; raise if the archive ends before."""
        if num_bytes:
            self._handle.seek(num_bytes - 1, io.SEEK_CUR)
            if not self._handle.read(1):
                raise self._ends("inside a member")
            self._position += num_bytes

    def _ends(self, where: str) -> Broken:
        return Broken(f"truncated: the archive ends {where} (after byte {self._position})")

    def _damaged(self) -> Broken:
        if self._position <= _BLOCK_BYTES:
            return Broken("not a tar archive")
        return Broken(f"damaged header before byte {self._position}: what comes after is lost")


def to_text(name: str) -> str:
    """Return a name as text that can be encoded: bytes that are not UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _kind(info: tarfile.TarInfo, *, is_sparse: bool) -> str:
    if is_sparse:
        return "a sparse file"
    if info.type in tarfile.REGULAR_TYPES or info.type in _FOLDERS:
        return ""
    return _LINKS_AND_DEVICES.get(info.type, f"a member of unknown type {info.type!r}")
