"""Measure `pipeline.diff` of two versions of many rows: seconds, and the most memory.

    python tests/bench/diff.py [--rows 10000000] [--changed-pct 10] [--top-k 3]

Both versions have the rows of a classifier, in parts of 500,000: ids as of files, label, score and
the best entries. In the second one a share of the rows has another label, all rows another score,
and a thousandth of them is new. The comparison runs in a process of its own. What it counts is held
to what was changed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from machine import machine, today

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, Part
from pipeline.core.schema import CLASSIFY_FIELDS, ROW_ID
from pipeline.storage.store import Store

PART_ROWS, NUM_LABELS = 500_000, 50
MOST_S, MOST_GIB = 120.0, 2.0
SCHEMA = pa.schema([pa.field(ROW_ID, pa.string()), *CLASSIFY_FIELDS])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--changed-pct", type=float, default=10.0)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.child:
        compare(*wanted.child)
        return
    with tempfile.TemporaryDirectory() as name:
        outputs = [str(Path(name) / side) for side in ("before", "now")]
        num_changed = publish(outputs, wanted.rows, wanted.changed_pct, wanted.top_k)
        command = [sys.executable, __file__, "--child", *outputs]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        input_mib = sum(f.stat().st_size for f in Path(name).rglob("*.parquet")) / 2**20
    new = wanted.rows // 1000
    expected = {"label": num_changed, "added": new, "removed": 0, "both": wanted.rows}
    if {key: found[key] for key in expected} != expected:
        raise SystemExit(f"differs: found {found}, expected {expected}")
    is_wanted = found["seconds"] <= MOST_S and found["peak_gib"] <= MOST_GIB
    print(
        f"{wanted.rows} rows on each side, {input_mib:.0f} MiB: {found['seconds']:.1f} s, "
        f"{found['peak_gib']:.2f} GiB: {'as wanted' if is_wanted else 'TOO MUCH'}"
    )
    print(json.dumps({"date": today(), "machine": machine(), "input_mib": input_mib, **found}))


def compare(before: str, now: str) -> None:
    """Compare in this process, and print what was found and what it took."""
    import pipeline

    begun = time.monotonic()
    found = pipeline.diff(before, now).found
    seconds = time.monotonic() - begun
    print(
        json.dumps(
            {
                "seconds": seconds,
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "label": found.columns["label"].differing,
                **{name: getattr(found, name) for name in ("both", "added", "removed", "changed")},
            }
        )
    )


def publish(outputs: list[str], num_rows: int, changed_pct: float, top_k: int) -> int:
    """Write both versions; return how many rows have another label in the second."""
    sides: tuple[list[Part], list[Part]] = ([], [])
    changed = 0
    draw = np.random.default_rng(7)
    for first in range(0, num_rows, PART_ROWS):
        ids = np.arange(first, min(first + PART_ROWS, num_rows))
        labels = draw.integers(0, NUM_LABELS, (len(ids), top_k), dtype=np.int32)
        scores = draw.random((len(ids), top_k), dtype=np.float32)
        is_changed = draw.random(len(ids)) < changed_pct / 100
        changed += int(is_changed.sum())
        others = labels.copy()
        others[is_changed, 0] = (labels[is_changed, 0] + 1) % NUM_LABELS
        sides[0].append(put(outputs[0], first, table_of(ids, labels, scores)))
        sides[1].append(put(outputs[1], first, table_of(ids, others, scores * np.float32(0.99))))
    extra = np.arange(num_rows, num_rows + num_rows // 1000)
    shape = (len(extra), top_k)
    rows = table_of(extra, np.zeros(shape, np.int32), np.ones(shape, np.float32))
    sides[1].append(put(outputs[1], num_rows, rows))
    for uri, parts in zip(outputs, sides, strict=True):
        store, layout = Store(uri), Layout(None)
        total = sum(part.num_rows for part in parts)
        facts = {"num_rows": total, "num_predicted": total, "num_quarantined": 0}
        names = ("kind", "partition", "fingerprint", "run_id", "token", "created_at")
        texts = {name: layout.name if name == "partition" else "bench" for name in names}
        manifest = Manifest(
            number=1, num_unreadable_shards=0, row_id_hash="", parts=tuple(parts),
            quarantine_parts=(), model={}, **facts, **texts,
        )  # fmt: skip
        store.put(layout.log_entry(1), manifest.to_json())
    return changed


def table_of(ids: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> pa.Table:
    """Rows of a classifier: ids (N,), labels and scores (N, K), the best first."""
    names = pa.array([f"label {n}" for n in range(NUM_LABELS)])
    flat = pa.array(labels.reshape(-1))
    entries = pa.StructArray.from_arrays(
        [names.take(flat), flat, pa.array(scores.reshape(-1))], ["label", "label_id", "score"]
    )
    offsets = pa.array(np.arange(0, labels.size + 1, labels.shape[1], dtype=np.int32))
    best = pa.array(np.ascontiguousarray(labels[:, 0]))
    columns = [
        pa.array([f"2026/11/camera-{n:08d}.jpg" for n in ids.tolist()]),
        names.take(best),
        best,
        pa.array(np.ascontiguousarray(scores[:, 0])),
        pa.ListArray.from_arrays(offsets, entries),
    ]
    return pa.table(columns, schema=SCHEMA)


def put(uri: str, number: int, rows: pa.Table) -> Part:
    """Write a part as a run does."""
    data = io.BytesIO()
    pq.write_table(rows, data, compression="zstd")
    path = f"{Layout(None).predictions}/part-{number:09d}.parquet"
    Store(uri).put(path, data.getvalue())
    digest = hashlib.sha256(data.getvalue()).hexdigest()
    return Part(path, rows.num_rows, len(data.getvalue()), digest)


if __name__ == "__main__":
    main()
