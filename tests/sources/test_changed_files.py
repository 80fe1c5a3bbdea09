"""Local files that change in mid-run: told even if their size and time are put back."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.tars import files
from support.inputs.tars import pack as pack_tar
from support.runs.reading import plan_job

from pipeline.commit.layout import Layout
from pipeline.commit.plan_store import adopt_plan
from pipeline.core.errors import InfraError
from pipeline.planning.plan import Plan
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

NUM_ROWS = 12


def parquet(folder: Path, mark: str) -> Path:
    rows = pa.table({"image": [f"{mark}{row:03}".encode() for row in range(NUM_ROWS)]})
    pq.write_table(rows, folder / "a.parquet", compression="none", row_group_size=3)
    return folder / "a.parquet"


def webdataset(folder: Path, mark: str) -> Path:
    members = {f"{row:03}__jpg": f"{mark}{row}".encode() for row in range(NUM_ROWS)}
    (folder / "a.tar").write_bytes(pack_tar(files(**members)))
    return folder / "a.tar"


def images(folder: Path, mark: str) -> Path:
    for row in range(NUM_ROWS):
        (folder / f"{row:03}.jpg").write_bytes(f"{mark}{row}".encode())
    return folder / f"{NUM_ROWS - 1:03}.jpg"


def jsonl(folder: Path, mark: str) -> Path:
    lines = [f'{{"image": "{mark * 4}", "n": {row}}}\n' for row in range(NUM_ROWS)]
    (folder / "a.jsonl").write_text("".join(lines))
    return folder / "a.jsonl"


KINDS: dict[str, Callable[[Path, str], Path]] = {
    each.__name__: each for each in (parquet, webdataset, images, jsonl)
}
FIELDS: dict[str, dict[str, Any]] = {"jsonl": {"image_encoding": "base64"}}


def rewritten(path: Path, folder: Path) -> None:
    """Write other content of the same size in place, and put the mtime back."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(path.read_bytes().replace(b"A", b"B"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def replaced(path: Path, folder: Path) -> None:
    """Put another file of the same size and mtime in its place."""
    before, other = path.stat(), folder / ".other"
    other.write_bytes(path.read_bytes().replace(b"A", b"B"))
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def tables(reader: Reader, plan: Plan) -> Iterator[pa.Table]:
    reader, units = pickle.loads(pickle.dumps((reader, plan.units)))  # as Ray does
    for unit in units:
        starts = set() if unit.cut is not None else {key.start for key in unit.slices()}
        for _, _, table in read_slices(reader, unit, starts):
            yield table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [rewritten, replaced])
@pytest.mark.parametrize("num_read", [0, 1])
def test_other_content_of_the_same_size_and_time_ends_the_run(
    kind: str, change: Callable[[Path, Path], None], num_read: int, tmp_path: Path
):
    path = KINDS[kind](tmp_path, "A")
    reader, plan = plan_job(tmp_path, 4, format=kind, **FIELDS.get(kind, {}))
    rows = tables(reader, plan)
    for _ in range(num_read):
        assert next(rows).num_rows == 4
    change(path, tmp_path)
    with pytest.raises(InfraError, match="changed since it was"):
        list(rows)


def test_a_chmod_leaves_the_fingerprint_and_the_next_run_goes_on(tmp_path: Path):
    (tmp_path / "in").mkdir()
    path = parquet(tmp_path / "in", "A")
    reader, plan = plan_job(tmp_path / "in", 4)
    store, layout = Store(str(tmp_path / "out")), Layout("date=2026-11-24")
    adopt_plan(store, layout, plan)
    path.chmod(0o600)
    again = plan_job(tmp_path / "in", 4)[1]
    assert again.fingerprint == plan.fingerprint
    adopted = adopt_plan(store, layout, again)
    assert adopted == replace(again, created_at=plan.created_at)
    assert sum(table.num_rows for table in tables(reader, adopted)) == NUM_ROWS
    with pytest.raises(InfraError, match="changed since it was planned"):
        list(tables(reader, plan))
