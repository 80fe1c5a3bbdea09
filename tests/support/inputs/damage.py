"""Damage files the way disks, networks and broken writers do, from a seed."""

from __future__ import annotations

import random

FOOTER_BYTES = 2048


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to four random faults; it may come out unchanged."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_FAULTS)(data, rng)
    return data


def damaged_end(data: bytes, rng: random.Random) -> bytes:
    """Damage only the last bytes, where a Parquet file has its footer."""
    cut = max(0, len(data) - FOOTER_BYTES)
    return data[:cut] + damaged(data[cut:], rng)


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data)) if data else 0


def _flip(data: bytes, rng: random.Random) -> bytes:
    copy = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 16))):
        if copy:
            copy[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(copy)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: _place(data, rng)]


def _behead(data: bytes, rng: random.Random) -> bytes:
    return data[_place(data, rng) :]


def _drop(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data[:start] + data[start + rng.randint(1, 600) :]


def _insert(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data[:start] + rng.randbytes(rng.randint(1, 600)) + data[start:]


def _blank(data: bytes, rng: random.Random) -> bytes:
    start, length = _place(data, rng), rng.choice((1, 16, 512, 4096))
    fill = rng.choice((b"\0", b"\xff", b"\x80"))
    gone = data[start : start + length]
    return data[:start] + fill * len(gone) + data[start + length :]


def _repeat(data: bytes, rng: random.Random) -> bytes:
    start = _place(data, rng)
    return data + data[start : start + rng.randint(1, 600)]


_FAULTS = (_flip, _flip, _flip, _cut, _behead, _drop, _insert, _blank, _repeat)
