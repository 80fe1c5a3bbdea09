"""Walk the members of a tar stream in order; a body is read only on request.

The standard library parses headers but does not walk the archive: its walk takes a damaged header
for the end of the archive, which would lose the rows after it silently, and it reads extended
headers of any size into memory. Nothing is extracted, and no link is followed.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from typing import BinaryIO, Self

from pipeline.core.errors import PipelineError
from pipeline.sources.whole_file import Broken, opened

_BLOCK_BYTES = 512
_CHUNK_BYTES = 2**20
_MAX_EXTENDED_BYTES = 2**20
_MAX_MEMBER_BYTES = 2**62
_COMPRESSED = {b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_END = b"end"
"""The type of the zeros that end an archive; types of members have one byte."""
_EXTENDED = frozenset(
    [
        *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
        *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    ]
)
_FOLDERS = frozenset([tarfile.DIRTYPE, b"D", b"V"])
_LINKS_AND_DEVICES = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a fifo",
}


@dataclass(frozen=True)
class Member:
    """The header of a member, with the stored name as text."""

    name: str
    size_bytes: int
    is_folder: bool = False
    special: str = ""
    """A description of a link, a device, a sparse file; '' for a plain file."""


def open_archive(handle: BinaryIO, size_bytes: int) -> Archive:
    """Start reading a tar, plain or compressed as a whole by gzip or zstd.

    Raises:
        Broken: The tar is compressed in another way.
    """
    head = handle.read(8)
    handle.seek(0)
    if not head:
        raise Broken("the file is empty")
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise Broken(f"compressed tar ({name}) of {size_bytes} bytes: recompress as plain tar")
    return Archive(opened(handle))


class _Header(tarfile.TarInfo):
    """A header; extended headers are read up to a usual size."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        if len(buf) < _BLOCK_BYTES:
            raise _ends("inside a header" if buf else "without an end mark")
        if not buf.strip(b"\0"):
            end = cls()
            end.type = _END
            return end
        header = super().frombuf(buf, encoding, errors)
        limit = _MAX_EXTENDED_BYTES if header.type in _EXTENDED else _MAX_MEMBER_BYTES
        if not 0 <= header.size <= limit:
            raise tarfile.HeaderError(f"a size of {header.size} bytes")
        return header


def _ends(where: str) -> Broken:
    return Broken(f"truncated: the archive ends {where}: what came after is lost")


class Archive:
    """A tar that is read forwards."""

    def __init__(self, handle: BinaryIO) -> None:
        self._handle = handle
        # Opened for writing, which reads nothing yet; it is never written to or closed.
        self._tar = tarfile.TarFile(
            fileobj=handle, mode="w", encoding="utf-8", errors="surrogateescape"
        )
        self._body_bytes = self._begin = 0

    def next_member(self) -> Member | None:
        """Return the next member; None at the end mark of the archive.

        Raises:
            Broken: The archive ends without its end mark, or a header is damaged.
        """
        handle, tar = self._handle, self._tar
        if handle.tell() < tar.offset:
            handle.seek(tar.offset - 1)
            if not handle.read(1):
                raise self._ends_inside()
        begin = handle.tell()
        try:
            header = _Header.fromtarfile(tar)
        except (Broken, PipelineError, OSError):
            raise
        except Exception as error:  # damaged extended headers raise anything
            raise self._damaged() from error
        has_extended = handle.tell() - begin > _BLOCK_BYTES
        if header.type == _END and not has_extended:
            return None
        if header.type == _END or header.size < 0 or tar.offset < handle.tell():
            raise self._damaged()
        self._body_bytes, self._begin = header.size, begin
        return _member(header)

    def read_body(self) -> bytes:
        """Read the whole body of the current member.

        Raises:
            Broken: The archive ends inside the body.
        """
        data = self._handle.read(self._body_bytes)
        if len(data) < self._body_bytes:
            self._handle.read(1)  # raises the error of damage there
            raise self._ends_inside()
        return data

    def _ends_inside(self) -> Broken:
        return _ends(f"inside the member that begins at byte {self._begin}")

    def check_rest(self) -> None:
        """Check that only padding follows the end mark.

        Raises:
            Broken: Data follow, as in concatenated tars.
        """
        end = self._handle.tell()
        while chunk := self._handle.read(_CHUNK_BYTES):
            if chunk.strip(b"\0"):
                raise Broken(
                    f"data after the end of the archive at byte {end}: concatenated tars must be "
                    "joined as `tar --concatenate` does, or stay apart"
                )

    def _damaged(self) -> Broken:
        position = self._handle.tell()
        if position <= _BLOCK_BYTES:
            return Broken("not a tar archive")
        return Broken(f"damaged header before byte {position}: what comes after is lost")


def to_text(name: str) -> str:
    """Return a name as text that can be encoded: bytes that are not UTF-8 become `\\xNN`."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _member(header: tarfile.TarInfo) -> Member:
    name, special = to_text(header.name), _LINKS_AND_DEVICES.get(header.type, "")
    is_folder = header.type in _FOLDERS or name.endswith("/")
    if header.issparse() or any(name.startswith("GNU.sparse.") for name in header.pax_headers):
        special = "a sparse file"
    elif not special and not is_folder and not header.isreg():
        special = f"a member of unknown type {header.type!r}"
    return Member(name, 0 if special or is_folder else header.size, is_folder, special)
