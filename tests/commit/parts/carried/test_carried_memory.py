"""Memory is that of a few parts, however many rows are taken over."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.runs.checkout import PYTHONPATH, SUPPORT

PEAK = """
import resource, sys
from dataclasses import replace
import numpy as np, pyarrow as pa
from support.runs.carried_nights import publish_parts
from support.runs.published import run_here
from pipeline.commit.layout import Layout
from pipeline.commit.parts.carried.parts import compact_carried
from pipeline.commit.parts.compaction import Compactor
from pipeline.commit.staging import StagingWriter
from pipeline.core.failures import failure_columns
from pipeline.core.schema import CARRIED_ROW, CARRIED_SOURCE, prediction_schema, staged_schema
from pipeline.core.slices import SliceKey
from pipeline.planning.carried import Carried, Source
from pipeline.storage.store import Store

folder, repeats, by_content = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "content"
num_rows = 12_000
ids = [str(row) for row in range(num_rows)]
noise = np.random.default_rng(1).random(num_rows * 250, np.float32)
vectors = pa.FixedSizeListArray.from_arrays(pa.array(noise), 250)
task = [pa.field("embedding", vectors.type)]
schema, staged = prediction_schema([], task), staged_schema([], task)
store = Store(folder)
table = pa.table({"row_id": ids, "uri": ids, "embedding": vectors}, schema=schema)
version = publish_parts(store, Layout("date=1"), 1, table, row_group_rows=2_000)
[part] = version.manifest.parts
version = replace(version, manifest=replace(version.manifest, parts=(part,) * repeats))
first = table.slice(0, 1).to_pydict()
one = pa.table({**first, **failure_columns([None])}, schema=staged)
null = pa.FixedSizeListArray.from_arrays(pa.array(noise), 250, mask=pa.array([True] * num_rows))
columns = {"row_id": ids, "uri": ids, "embedding": null, **failure_columns([None] * num_rows)}
found = pa.table(columns, schema=staged)
found = found.append_column(CARRIED_SOURCE, pa.array([0] * num_rows, pa.int8()))
found = found.append_column(CARRIED_ROW, pa.array(range(num_rows)))
slices = []
for unit in range(repeats):
    rows = found if by_content else one
    key = SliceKey(unit, 0, rows.num_rows, True)
    name = StagingWriter(store, "work", "r", "zstd", {}).write(key, {}, rows).name
    slices.append((key, f"work/{name}", float(store.stat(f"work/{name}").size_bytes)))
# Of each part the row in the middle was computed anew.
half = num_rows // 2
runs = [[unit + nth, 0, 0, unit * num_rows + nth * (half + 1), half - nth]
        for unit in range(repeats) for nth in (0, 1)]
runs = np.array([] if by_content else runs, np.int64).reshape(-1, 5)
carried = Carried((Source("date=1", 1, "t"),), runs, np.zeros((0, 4), np.int64), by_content)
compactor = Compactor(store, "new", "000001-0123456789ab", schema, "zstd", {}, 12e6)
all_rows = np.array([repeats * num_rows])
done, traffic = compact_carried(
    compactor, slices, {}, carried, [version], ("row_id", "uri"), all_rows, run_here
)
assert traffic.parts_copied == 0
print(len(done.predictions), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def peak_kib(folder: Path, repeats: int, how: str) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(folder), str(repeats), how],
        cwd=SUPPORT,
        env={"PYTHONPATH": PYTHONPATH},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    num_parts, peak = map(int, done.stdout.split())
    return num_parts, peak


@pytest.mark.slow
def test_memory_does_not_grow_with_what_is_taken_over(tmp_path: Path):
    for how in ("runs", "content"):
        few, low = peak_kib(tmp_path / f"{how}-few", 3, how)
        many, high = peak_kib(tmp_path / f"{how}-many", 12, how)
        assert (few, many) >= (2, 10)
        # All 144 MB at once would show.
        assert high - low < 80 * 1024, (how, low, high)
