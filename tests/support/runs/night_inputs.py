"""Shards of every format that change from night to night, described by their rows.

A row is a number. Numbers beyond `BROKEN` are of rows that the decoder cannot take until mended.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from support.inputs.tars import Entry, pack
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.earlier_partitions import write_same_time

BROKEN = 1000
CAMERAS = ("front", "back", None)
CONTENTS = 7
"""So many numbers are usual, so that equal rows are there."""
Change = tuple[
    Literal[
        *("add", "set", "drop", "delete", "rename", "touch", "swap", "break", "mend", "zero", "cut")
    ],
    int,
    int,
]
"""What is done, to which shard, and to which row or other shard."""


def image(row: int) -> bytes:
    return b"image %04d" % row


def _cameras(rows: Sequence[int]) -> list[str | None]:
    """Values that equal rows do not share, so that they are never those of another row."""
    return [CAMERAS[(place + row) % 3] for place, row in enumerate(rows)]


def _write_file(path: Path, rows: Sequence[int]) -> None:
    path.write_bytes(image(rows[0]))


def _write_parquet(path: Path, rows: Sequence[int]) -> None:
    """The same rows in the columns of each kind of input."""
    table = pa.table(
        {
            "image": pa.array([image(row) for row in rows], pa.binary()),
            "camera": pa.array(_cameras(rows), pa.string()),
            "id": pa.array([f"id-{row}" for row in rows], pa.string()),
            "link": pa.array([f"photos/{row}.jpg" for row in rows], pa.string()),
            "text": pa.array([image(row).decode() for row in rows], pa.string()),
            "x": pa.array([float(row) for row in rows]),
            "y": pa.array([*rows], pa.int64()),
        }
    )
    pq.write_table(table, path, row_group_size=3, compression="none")


def _write_links(path: Path, rows: Sequence[int]) -> None:
    folder = path.parent / "photos"
    folder.mkdir(exist_ok=True)
    for row in rows:
        (folder / f"{row}.jpg").write_bytes(image(row))
    _write_parquet(path, rows)


def _write_tar(path: Path, rows: Sequence[int]) -> None:
    entries = [
        entry
        for place, row in enumerate(rows)
        for entry in (Entry(f"k{place}.jpg", image(row)), Entry(f"k{place}.cls", b"%d" % row))
    ]
    path.write_bytes(pack(entries))


def _write_lines(path: Path, rows: Sequence[int]) -> None:
    lines = [
        json.dumps({"image": base64.b64encode(image(row)).decode(), "camera": camera})
        for row, camera in zip(rows, _cameras(rows), strict=True)
    ]
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))


def _write_csv(path: Path, rows: Sequence[int]) -> None:
    lines = [
        f"{base64.b64encode(image(row)).decode()},{camera or ''}"
        for row, camera in zip(rows, _cameras(rows), strict=True)
    ]
    path.write_text("\n".join(["image,camera", *lines]))


@dataclass(frozen=True)
class Format:
    """How rows are written, and what a job says of them."""

    write: Callable[[Path, Sequence[int]], None]
    suffix: str
    source: dict[str, Any]
    columns: tuple[str, ...] = ("label",)
    """By which a partition can be divided."""
    is_file: bool = False
    """A shard is one row."""
    sections: dict[str, Any] = field(default_factory=dict)


_PARQUET = {"format": "parquet", "pass_through": ["camera"]}
_ENCODED = {"pass_through": ["camera"], "image_column": "image", "image_encoding": "base64"}
_BOTH = ("label", "camera")
FORMATS = {
    "images": Format(_write_file, ".jpg", {"format": "images"}, is_file=True),
    "parquet": Format(_write_parquet, ".parquet", {**_PARQUET, "image_column": "image"}, _BOTH),
    "ids": Format(
        _write_parquet, ".parquet", {**_PARQUET, "image_column": "image", "id_column": "id"}, _BOTH
    ),
    "uris": Format(_write_links, ".parquet", {**_PARQUET, "uri_column": "link"}, _BOTH),
    "tars": Format(
        _write_tar, ".tar", {"format": "webdataset", "pass_through": ["cls"]}, ("label", "cls")
    ),
    "jsonl": Format(_write_lines, ".jsonl.gz", {"format": "jsonl", **_ENCODED}, _BOTH),
    "csv": Format(_write_csv, ".csv", {"format": "csv", **_ENCODED}, _BOTH),
    "texts": Format(
        _write_parquet, ".parquet", {"format": "parquet", "text_column": "text"},
        sections={"transform": None},
    ),
    "features": Format(
        _write_parquet, ".parquet", {"format": "parquet", "features": ["x", "y"]},
        sections={"transform": None},
    ),
}  # fmt: skip


class NightInputs:
    """A folder of shards; the first one always has rows that can be read."""

    def __init__(self, folder: Path, form: Format) -> None:
        self.folder, self.format = folder, form
        self.broken: set[str] = set()
        """Contents that cannot be decoded yet."""
        self._rows: dict[str, list[int]] = {}
        self._unreadable: set[str] = set()
        self._num_broken = 0
        folder.mkdir()
        num_shards, num_rows = (64, 1) if form.is_file else (12, 6)
        self._names = [f"s{number:02d}{form.suffix}" for number in range(num_shards + 2)]
        for number in range(num_shards):
            first = number * num_rows
            self._write(self._names[number], [*range(first, first + num_rows)])
        if "text_column" in form.source:
            make_tokenizer().save(str(folder.parent / "tokenizer.json"))

    @property
    def sections(self) -> dict[str, Any]:
        if "text_column" not in self.format.source:
            return self.format.sections
        text = {"tokenizer": str(self.folder.parent / "tokenizer.json"), "max_tokens": 16}
        return {**self.format.sections, "text": text}

    def change(self, change: Change) -> None:
        what, shard, number = change
        name = self._names[shard % len(self._names)]
        other = self._names[1 + number % (len(self._names) - 1)]
        rows = self._rows.get(name, [])
        if what == "add":
            self._write(name, [*(() if self.format.is_file else rows), number % CONTENTS])
        elif what == "break":
            self._num_broken += 1
            row = BROKEN + self._num_broken
            self.broken.add(self._key(row))
            self._write(name, [*(() if self.format.is_file else rows), row])
        elif what == "mend" and self.broken:
            self.broken.remove(sorted(self.broken)[number % len(self.broken)])
        elif not rows:
            return
        elif what == "set":
            place = number % len(rows)
            self._write(name, [*rows[:place], number % CONTENTS, *rows[place + 1 :]])
        elif what == "drop" and len(rows) > 1:
            place = number % len(rows)
            self._write(name, [*rows[:place], *rows[place + 1 :]])
        elif what == "touch":
            os.utime(self.folder / name)
        elif name != self._names[0]:
            self._change_shard(what, name, other)

    def restore(self) -> None:
        """Let all shards be readable again."""
        for name in sorted(self._unreadable & self._rows.keys()):
            self._write(name, self._rows[name])

    def _change_shard(self, what: str, name: str, other: str) -> None:
        path, rows = self.folder / name, self._rows[name]
        if what == "delete":
            path.unlink()
            del self._rows[name]
        elif what == "rename":
            path.rename(self.folder / other)
            self._rows[other] = self._rows.pop(name)
        elif what == "swap" and other in self._rows:
            self._write(name, self._rows[other])
            self._write(other, rows)
        elif what == "zero":
            path.write_bytes(bytes(path.stat().st_size))
            self._unreadable.add(name)
        elif what == "cut":
            path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
            self._unreadable.add(name)

    def _write(self, name: str, rows: Sequence[int]) -> None:
        """Write a shard; where it has as many bytes as before it keeps its time."""
        path, new = self.folder / name, self.folder.parent / f"new{self.format.suffix}"
        self._rows[name] = [*rows]
        self._unreadable.discard(name)
        if self.format.source.get("uri_column"):
            new = self.folder / f".new{self.format.suffix}"
        self.format.write(new, rows)
        if path.exists() and path.stat().st_size == new.stat().st_size:
            write_same_time(path, new.read_bytes())
            new.unlink()
        else:
            new.rename(path)

    def _key(self, row: int) -> str:
        if "features" in self.format.source:
            return f"{float(row)} {row}"
        return image(row).decode()
