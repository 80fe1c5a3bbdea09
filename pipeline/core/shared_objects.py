"""Which libraries a shared object needs, by its ELF header; it is not loaded itself."""

from __future__ import annotations

import ctypes
import mmap
import struct
from pathlib import Path

_ELF64 = b"\x7fELF\x02\x01"
"""64 bits, little-endian."""
_PROGRAM, _ENTRY = struct.Struct("<IIQQQQQQ"), struct.Struct("<qQ")
_LOAD, _DYNAMIC = 1, 2
_NEEDED, _STRINGS, _RPATH, _RUNPATH = 1, 5, 15, 29


def absent_libraries(path: Path) -> list[str]:
    """Return the libraries that a shared object needs and the loader does not find.

    Those that it finds are loaded into this process.

    Args:
        path: The shared object; one of another format needs none.

    Raises:
        OSError: It cannot be read.
    """
    needed, folders = needed_by(path)
    absent = []
    for name in needed:
        there = [folder / name for folder in (path.parent, *folders) if (folder / name).exists()]
        try:
            # What lies beside it may count on being loaded by it.
            _ = there or ctypes.CDLL(name)
        except OSError:
            absent.append(name)
    return absent


def needed_by(path: Path) -> tuple[list[str], list[Path]]:
    """Return the names of the libraries that it needs, and where it has them looked for first."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[: len(_ELF64)] != _ELF64:
            return [], []
        (start,) = struct.unpack_from("<Q", data, 0x20)
        size, number = struct.unpack_from("<HH", data, 0x36)
        parts = [_PROGRAM.unpack_from(data, start + size * index) for index in range(number)]
        entries = [
            entry
            for kind, _, offset, _, _, length, *_ in parts
            if kind == _DYNAMIC
            for entry in _ENTRY.iter_unpack(data[offset : offset + length])
        ]
        address = next((value for tag, value in entries if tag == _STRINGS), 0)
        strings = next(
            (
                offset + address - virtual
                for kind, _, offset, virtual, _, length, *_ in parts
                if kind == _LOAD and virtual <= address < virtual + length
            ),
            0,
        )

        def named(*tags: int) -> list[str]:
            places = [strings + value for tag, value in entries if tag in tags]
            return [data[place : data.find(b"\0", place)].decode() for place in places]

        folders = ":".join(named(_RPATH, _RUNPATH)).replace("$ORIGIN", str(path.parent))
        return named(_NEEDED), [Path(folder) for folder in folders.split(":") if folder]
