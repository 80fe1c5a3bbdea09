"""Tar archives in memory: as tar programs write them, and as none should."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field

BLOCK_BYTES = 512
END_BYTES = 2 * BLOCK_BYTES


@dataclass(frozen=True)
class Entry:
    """One member; without a type it is a plain file."""

    name: str
    data: bytes = b""
    member_type: bytes = tarfile.REGTYPE
    target: str = ""
    pax: dict[str, str] = field(default_factory=dict)

    def to_bytes(self, fmt: int, encoding: str) -> bytes:
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.size = self.member_type, self.target, len(self.data)
        info.pax_headers = self.pax
        padding = bytes(-len(self.data) % BLOCK_BYTES)
        return info.tobuf(fmt, encoding, "surrogateescape") + self.data + padding


def pack(
    entries: Iterable[Entry],
    *,
    fmt: int = tarfile.PAX_FORMAT,
    encoding: str = "utf-8",
    end: bool = True,
) -> bytes:
    """Write an archive; without `end` it has no end mark."""
    members = b"".join(entry.to_bytes(fmt, encoding) for entry in entries)
    return members + bytes(END_BYTES if end else 0)


def files(**members: bytes) -> list[Entry]:
    """Plain files; the last `__` of a name stands for the dot before the extension."""
    return [Entry(name.replace("__", "."), data) for name, data in members.items()]


def with_checksum(header: bytes) -> bytes:
    """Correct the checksum of a header that was changed by hand."""
    blank = header[:148] + b" " * 8 + header[156:]
    return blank[:148] + b"%06o\0 " % sum(blank) + blank[156:]


class CountingFile(io.BytesIO):
    """A file that knows how many bytes were read from it."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.read_bytes = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.read_bytes += len(data)
        return data
