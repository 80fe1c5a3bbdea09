"""How much longer tiny row groups take to list and to read than normal ones (no Ray, no model).

python tests/bench/row_groups.py [ROWS]
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.job.source import Source
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.sources.inputs import list_inputs
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

GROUPS = (10_000, 10, 1)
FEATURES = tuple(f"f{index}" for index in range(4))


@contextmanager
def timed(seconds: list[float]) -> Iterator[None]:
    started = perf_counter()
    yield
    seconds.append(perf_counter() - started)


def measure(folder: Path, num_rows: int, group_rows: int) -> tuple[float, float]:
    """Return seconds of listing and of reading everything."""
    table = pa.table({name: pa.array(range(num_rows), pa.float32()) for name in FEATURES})
    pq.write_table(table, folder / "a.parquet", row_group_size=group_rows)
    source = Source(uri=str(folder), format="parquet", features=FEATURES)
    seconds: list[float] = []
    with timed(seconds):
        inputs = list_inputs(source, max_extent_rows=512)
        units = list(make_units(inputs.extents, SliceSizes(512)))
    reader = Reader(Store(inputs.root), source, inputs.pass_through, inputs.fields)
    with timed(seconds):
        found = 0
        for unit in units:
            for _, _, rows in read_slices(reader, unit, {key.start for key in unit.slices()}):
                found += rows.num_rows
    assert found == num_rows
    return seconds[0], seconds[1]


def main() -> None:
    num_rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    for group_rows in GROUPS:
        with tempfile.TemporaryDirectory() as folder:
            listing_s, reading_s = measure(Path(folder), num_rows, group_rows)
        rate = num_rows / reading_s
        sys.stdout.write(
            f"{num_rows} rows in groups of {group_rows}: listing {listing_s:.2f} s, reading "
            f"{reading_s:.2f} s, {rate:.0f} rows/s\n"
        )


if __name__ == "__main__":
    main()
