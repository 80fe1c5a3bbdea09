"""Call handlers of ours when Ray's core ends this process from C++.

It calls `_Exit(1)` in the thread that notices that the raylet is gone, and `abort` if one of its
own checks fails, without an exception or a message. Here both lead to a handler, which can still
store a report and say what happened. Linux only; elsewhere Ray's core ends the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

Handler = Callable[[], object]
"""Shows the error and ends the process."""

_EXIT_CODE = 7
_MAX_INTERRUPTS = 3
_NAMES = (b"_Exit", b"abort")
_PT_DYNAMIC = 2
_STRINGS, _SYMBOLS, _SIZE, _JUMPS = 5, 6, 2, 23
_HEADER = struct.Struct("=16x2xH12xQ14xHH")
"""Of an ELF file of 64 bits: the machine, where its program headers begin, their size and count."""
_MACHINES = (0x3E, 0xB7)
_SEGMENT = struct.Struct("=I12xQ32x")
_ENTRY = struct.Struct("=QQ")
_JUMP = struct.Struct("=QQ8x")
_handlers: list[Handler] = []
_first = threading.RLock()
_Native = ctypes.CFUNCTYPE(None, ctypes.c_int)
_kept: list[object] = []
"""What C code calls must not be collected."""


@contextlib.contextmanager
def handled_by(handler: Handler) -> Iterator[None]:
    """Let Ray's core call a handler before it ends the process during the body."""
    _handlers.append(handler)
    try:
        yield
    finally:
        _handlers.remove(handler)


def have_last_word() -> None:
    """Let Ray's core end this process no longer; if it is doing so, wait for the end."""
    if _handlers and not _first.acquire(blocking=False):
        threading.Event().wait()


def divert(library: str) -> None:
    """Let `_Exit` and `abort` of a loaded library call the newest handler, if there is any.

    A process without handlers (a notebook) stays as it was. What cannot be done is left out.
    """
    if _kept or not _handlers or sys.platform != "linux":
        return
    target = _Native(_end)
    address = ctypes.cast(target, ctypes.c_void_p).value or 0
    try:
        for slot in _slots(library):
            _write(slot, address)
            _kept.append(target)
    except (OSError, ValueError, struct.error) as error:
        log.debug("%s: its exits stay as they are: %s", library, error)


def _end(_: int = 0) -> None:
    """Never return: C code behind the call counts on that."""
    if not _first.acquire(blocking=False):
        threading.Event().wait()
    try:
        for handler in reversed(list(_handlers)):
            _call(handler)
    finally:
        os._exit(_EXIT_CODE)


def _call(handler: Handler) -> None:
    """Call a handler; again if an interrupt that was under way already hits it."""
    for _ in range(_MAX_INTERRUPTS):
        with contextlib.suppress(KeyboardInterrupt):
            try:
                handler()
            except Exception as error:  # noqa: BLE001  # the next one has the word
                log.debug("last words: %s", error)
            return


def _slots(library: str) -> Iterator[int]:
    """Yield where a loaded library keeps the addresses of the functions that end a process."""
    base = _base(library)
    machine, offset, size, count = _HEADER.unpack(ctypes.string_at(base, _HEADER.size))
    if machine not in _MACHINES:
        raise ValueError("not a library of 64 bits for x86 or ARM")
    headers = ctypes.string_at(base + offset, size * count)
    segments = [_SEGMENT.unpack_from(headers, size * index) for index in range(count)]
    dynamic = next(base + at for kind, at in segments if kind == _PT_DYNAMIC)
    found: dict[int, int] = {}
    while (entry := _ENTRY.unpack(ctypes.string_at(dynamic, _ENTRY.size)))[0]:
        found[entry[0]] = entry[1]
        dynamic += _ENTRY.size
    # glibc has made these addresses absolute, other loaders leave them relative.
    strings, symbols, jumps = (
        found[tag] if found[tag] > base else base + found[tag]
        for tag in (_STRINGS, _SYMBOLS, _JUMPS)
    )
    for where, info in _JUMP.iter_unpack(ctypes.string_at(jumps, found[_SIZE])):
        (name,) = struct.unpack("=I", ctypes.string_at(symbols + 24 * (info >> 32), 4))
        if ctypes.string_at(strings + name) in _NAMES:
            yield base + where


def _base(library: str) -> int:
    real = os.path.realpath(library)  # the kernel knows no links
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, _, offset, _, _, *path = line.split(maxsplit=5)
        if path == [real] and int(offset, 16) == 0:
            return int(addresses.partition("-")[0], 16)
    raise ValueError("it is not loaded")


def _write(slot: int, address: int) -> None:
    """Write an address where the loader may have forbidden it, and forbid it again."""
    libc = ctypes.CDLL(None, use_errno=True)
    page = slot - slot % mmap.PAGESIZE
    is_free = _is_writable(slot)
    for allowed in (mmap.PROT_READ | mmap.PROT_WRITE, mmap.PROT_READ):
        done = is_free or not libc.mprotect(ctypes.c_void_p(page), mmap.PAGESIZE, allowed)
        if not done:
            raise OSError(ctypes.get_errno(), "mprotect")
        if allowed & mmap.PROT_WRITE:
            ctypes.c_void_p.from_address(slot).value = address


def _is_writable(address: int) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        (start, _, end), allowed = line.split()[0].partition("-"), line.split()[1]
        if int(start, 16) <= address < int(end, 16):
            return "w" in allowed
    return False
