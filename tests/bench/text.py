"""Measure rows/s over passages beside peers: `python tests/bench/text.py`.

MiniLM over docstrings of the standard library, 3 to 500 words; the systems take turns, so that a
slow minute meets all of them. What is compared:

- `exact`: `pipeline run` in eager fp32.
- `fp32`, `auto`: with what `pipeline tune` chose in fp32, and in any precision.
- `st-1`, `st`: sentence-transformers in one process, with one thread and with one a core.
- `st-pool`: its pool of processes, one a core.
- `ray-text`: Ray Data with sentence-transformers in a pool of actors.
- `daft-text`: Daft's `embed_text`.

`whole` is rows/s of the whole process, `steady` without starting up: ours, `ray-text` and
`daft-text` by the second half of the rows, the others by the time of encoding all. Peers write
Parquet, too. `differences` holds our embeddings to those of sentence-transformers. Prints lines,
then one JSON line, which `--out` writes to a file too; results.py makes a page of it.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from machine import machine, today
from peer_texts import EMBEDDINGS
from systems import OURS, Case, Unusable, run_job, run_peer, sections_of
from text_batches import text_case
from tuned import Tuned
from turns import in_turn, summarise, tell, usable

MODEL = "all-MiniLM-L6-v2"
PEERS = ("st-1", "st", "st-pool", "ray-text", "daft-text")
SYSTEMS = ("exact", "fp32", "auto", *PEERS)


def main() -> None:
    wanted = parse()
    systems, skipped = usable(wanted.systems)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = Measured(text_case(folder, wanted.rows))
        measured.tune(systems, skipped)
        runs = in_turn(systems, wanted.runs, measured.run, skipped, MODEL)
        results = [
            summarise(MODEL, system, measured.said(system), found) for system, found in runs.items()
        ]
        differences = measured.differences()
    document = {
        "date": today(),
        "rows": wanted.rows,
        "kind": "text",
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "differences": differences,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


class Measured(Tuned):
    """Runs the systems over one case, and remembers what they chose and wrote."""

    def __init__(self, case: Case) -> None:
        super().__init__(case, MODEL)
        self._embeddings: dict[str, Path] = {}

    def run(self, system: str) -> dict[str, Any]:
        """Run a system once.

        Raises:
            Unusable: It failed.
        """
        if system in OURS:
            found = run_job(self._case, system, sections_of(self._case, system))
            self._embeddings[system] = Path(found.pop("out")) / "predictions"
            return found
        out = self._case.folder / f"out-{system}-{time.time_ns()}"
        found = run_peer(system, self._case, str(out))
        self._embeddings[system] = out
        return found

    def differences(self) -> dict[str, dict[str, float]]:
        """Hold the embeddings of ours to those of sentence-transformers, in the same order."""
        peer = next((self._embeddings[p] for p in ("st", "st-1") if p in self._embeddings), None)
        if peer is None:
            return {}
        expected = _embeddings(pq.read_table(peer / EMBEDDINGS), "id")
        return {
            system: _difference(_embeddings(pq.read_table(path), "row_id"), expected)
            for system, path in self._embeddings.items()
            if system in OURS
        }


def _embeddings(rows: Any, id_column: str) -> np.ndarray:
    """Return (N, D) embeddings in the order of their ids, which must be 0 to N - 1."""
    ids = np.array([int(value) for value in rows.column(id_column).to_pylist()])
    if not (np.sort(ids) == np.arange(len(ids))).all():
        raise Unusable("ids are missing or there twice")
    values = rows.column("embedding").combine_chunks().flatten().to_numpy()
    return values.reshape(len(ids), -1)[np.argsort(ids)]


def _difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Return the largest difference of a number, and the smallest cosine of a row."""
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
    cosines = (found * expected).sum(axis=1) / norms
    return {"largest": float(np.abs(found - expected).max()), "min_cosine": float(cosines.min())}


if __name__ == "__main__":
    main()
