"""Damage to files as disks, networks and broken writers cause it, from a seed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

FOOTER_BYTES = 2048
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 7, 64, 1.5, -2.0, float("nan"), float("inf"), 2**40, -(2**63)),
    *("", "x", "../up", "torch.nn.Linear", "\x1b[31m", "é" * 40, [], [1], [[]], ["x", 2]),
    *({}, {"a": 1}, {"type": "x"}, [{}], [None]),
)
CONTAINERS = tuple(value for value in VALUES if isinstance(value, list | dict))
"""Where names belong they are most often mistaken for what they are not."""


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a copy with one to four random faults; it may come out unchanged."""
    for _ in range(rng.randint(1, 4)):
        data = rng.choice(_FAULTS)(data, rng)
    return data


def damaged_end(data: bytes, rng: random.Random) -> bytes:
    """Damage only the last bytes, where a Parquet file has its footer."""
    cut = max(0, len(data) - FOOTER_BYTES)
    return data[:cut] + damaged(data[cut:], rng)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value within a JSON document; of a vocabulary only a few."""
    yield at
    if isinstance(value, dict | list):
        items = [*value.items()] if isinstance(value, dict) else [*enumerate(value)]
        for key, inner in items if len(items) < 40 else items[:2] + items[-2:]:
            yield from places(inner, (*at, key))


def changed(document: Any, rng: random.Random) -> Any:
    """Return a document with one value replaced, or left out."""
    at = rng.choice([*places(document)])
    new = rng.choice(VALUES if rng.random() < 0.5 else CONTAINERS)
    if not at:
        return new
    document = json.loads(json.dumps(document))
    holder = document
    for key in at[:-1]:
        holder = holder[key]
    if rng.random() < 0.15:
        del holder[at[-1]]
    else:
        holder[at[-1]] = new
    return document


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
