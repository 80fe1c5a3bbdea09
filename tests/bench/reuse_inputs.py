"""Inputs that reuse.py changes between a run and the next: photos, a table, and texts.

What changes is a tenth of the rows. For `inputs` these are whole files, and the others stay as they
are; for `content` all files are written anew, and a tenth of the rows in each of them differs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from peer_tables import names_of
from safetensors.torch import save_file
from systems import Case, write_weights
from tables_model import mlp

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.passages import passages
from support.inputs.photos import build_images
from support.models.minilm import fetch_minilm

SHARE = 10
"""One row in so many changes."""
SHARDS = {"tables": 100, "texts": 40}
FEATURES, HIDDEN = 100, 2048
Write = Callable[[Path], None]


class Inputs(Protocol):
    """A folder of inputs as it was and as it is changed."""

    case: Case

    def reset(self) -> None:
        """Bring the files back to what they were at first."""
        ...

    def change(self, reuse: str) -> int:
        """Change a tenth of the rows; return how many."""
        ...


class Photos:
    """A folder of photos, a row each."""

    def __init__(self, folder: Path, num_rows: int, model: str) -> None:
        """Write photos, and others to put in their place."""
        self._images, others = folder / "images", folder / "others"
        build_images(self._images, num_rows, seed=1, num_bad=0)
        build_images(others, max(8, num_rows // SHARE), seed=2, num_bad=0)
        self._first = {path: path.read_bytes() for path in _photos(self._images)}
        self._others = [path.read_bytes() for path in _photos(others)]
        self.case = Case(folder, self._images, num_rows, write_weights(folder, model))

    def reset(self) -> None:
        now = {path: path.read_bytes() for path in _photos(self._images)}
        for path in now.keys() - self._first.keys():
            path.unlink()
        for path, data in self._first.items():
            if now.get(path) != data:
                path.write_bytes(data)

    def change(self, reuse: str) -> int:
        paths = list(self._first)
        changed = dict(zip(paths[::SHARE], self._others, strict=False))
        for path in paths if reuse == "content" else changed:
            path.write_bytes(changed.get(path, self._first[path]))
        return len(changed)

    def be_late(self) -> tuple[int, int, int]:
        """Add five photos, change three and remove two; return these numbers."""
        paths = list(self._first)
        added, changed, removed = self._others[:5], paths[1:4], paths[5:7]
        for number, data in enumerate(added):
            (self._images / f"late-{number}.jpg").write_bytes(data)
        for path, data in zip(changed, self._others[5:], strict=False):
            path.write_bytes(data)
        for path in removed:
            path.unlink()
        return len(added), len(changed), len(removed)


class Shards:
    """Parquet files of as many rows each."""

    def __init__(self, case: Case, num_shards: int, rows: pa.Table, others: pa.Table) -> None:
        """Take the rows, and as many others, and write the files.

        Args:
            case: Over the folder of the files.
            num_shards: Into so many files the rows go.
            rows: As they are at first.
            others: What changed rows become; their ids stay.
        """
        self.case, self._num_shards = case, num_shards
        self._rows, self._others = rows, others.set_column(0, "id", rows.column("id"))
        case.inputs.mkdir(parents=True)
        self._lie: dict[int, pa.Table] = {}
        self.reset()

    def reset(self) -> None:
        for number, own in enumerate(self._cut(self._rows)):
            self._write(number, own)

    def change(self, reuse: str) -> int:
        shard_rows = self._rows.num_rows // self._num_shards
        numbers = np.arange(self._rows.num_rows)
        of = numbers // shard_rows if reuse == "inputs" else numbers
        is_changed = of % SHARE == 0
        place = pa.array(np.where(is_changed, numbers + len(numbers), numbers))
        changed = pa.concat_tables([self._rows, self._others]).take(place)
        for number, own in enumerate(self._cut(changed)):
            if reuse == "content" or number % SHARE == 0:
                self._write(number, own)
        return int(is_changed.sum())

    def _cut(self, rows: pa.Table) -> list[pa.Table]:
        size = rows.num_rows // self._num_shards
        return [rows.slice(size * number, size) for number in range(self._num_shards)]

    def _write(self, number: int, rows: pa.Table) -> None:
        if self._lie.get(number) != rows:
            pq.write_table(rows, self.case.inputs / f"{number:03d}.parquet")
            self._lie[number] = rows


def table_inputs(folder: Path, num_rows: int, hidden: int) -> Shards:
    """Return noise for a network of two hidden layers, whose weights lie in a file."""
    torch.manual_seed(0)
    weights = folder / "mlp.safetensors"
    save_file(mlp(FEATURES, hidden).state_dict(), weights)
    model = {
        "factory": "tables_model:mlp",
        "args": {"num_features": FEATURES, "hidden": hidden},
        "weights": str(weights),
        "task": "regress",
    }
    columns = {"format": "parquet", "features": names_of(FEATURES), "pass_through": ["id"]}
    case = Case(folder, folder / "in", num_rows, model, columns=columns)
    return Shards(case, SHARDS["tables"], _noise(num_rows, 0), _noise(num_rows, 1))


def text_inputs(folder: Path, num_rows: int) -> Shards:
    """Return passages for MiniLM.

    Raises:
        Unreachable: It cannot be downloaded.
    """
    found, ids = passages(2 * num_rows), pa.array(range(num_rows))
    rows, others = (
        pa.table({"id": ids, "text": half}) for half in (found[:num_rows], found[num_rows:])
    )
    columns = {"format": "parquet", "text_column": "text", "id_column": "id"}
    model = {"path": str(fetch_minilm())}
    case = Case(folder, folder / "in", num_rows, model, columns=columns)
    return Shards(case, SHARDS["texts"], rows, others)


def make_inputs(kind: str, folder: Path, wanted: Mapping[str, Any]) -> Inputs:
    """Write the inputs of a kind below a folder."""
    folder.mkdir()
    if kind == "photos":
        return Photos(folder, wanted["photos"], wanted["model"])
    if kind == "tables":
        return table_inputs(folder, wanted["tables"], wanted["hidden"])
    return text_inputs(folder, wanted["texts"])


def _noise(num_rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    columns = {name: rng.standard_normal(num_rows, np.float32) for name in names_of(FEATURES)}
    return pa.table({"id": np.arange(num_rows), **columns})


def _photos(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.*") if path.is_file())
