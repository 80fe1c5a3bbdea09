"""Kill parts of a cluster while a run uses it: `python tests/bench/chaos.py --seeds 10`.

The real command classifies 2,000 photos with EfficientNet-Lite0, or with `--task detect`
finds spots in them, on a Ray of three nodes. At seeded moments five workers and two nodes are
killed, and the driver, which is then started again. What is published must be what an undisturbed
run publishes, row by row and in order, and all of it may take three times as long; so where a run
ends before all blows fell. `--fault drain` takes two nodes away after a notice, `--fault change`
lets a cluster of three lose one, gain one and drain one, `--fault rpc` lets one call in five
between Ray's processes fail. Nodes have a temporary folder each, as machines have; with even seeds
they share it, and so know of each other's dead. Prints a line of JSON for each seed; exit 1 where
one breaks a promise.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
from disturb import DATE, DRAIN, DRIVER, GAIN, LOSE, NODE, WORKER, Broken, Disturbed, Outcome
from models import LABELS
from support.inputs.photos import build_parquet
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_part, read_predictions
from support.servers.raynodes import RayNodes

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.storage.store import Store

NUM_NODES = {"kill": 2, "drain": 2, "change": 3, "rpc": 2}
"""Fault -> nodes beside the head."""
UNIT_ROWS = 50
BAD_EVERY = 160
PARTITION = f"date={DATE}"
MODELS: dict[str, dict[str, Any]] = {
    "classify": {"model": {"name": "efficientnet-lite0"}, "transform": None},
    "detect": {"model": {"task": "detect", "factory": "models:spots", "labels": LABELS}},
}
BLOWS = {"kill": [WORKER] * 5 + [NODE] * 2 + [DRIVER], "drain": [DRAIN] * 2}
BLOWS |= {"change": [LOSE, GAIN, DRAIN], "rpc": []}
RPC_FAILURE = "RAY_testing_rpc_failure"
_FAILS = {"num_failures": 100, "req_failure_prob": 10, "resp_failure_prob": 10}
FAILING_CALLS = {
    "CoreWorkerService.grpc_client.PushTask": _FAILS,
    "CoreWorkerService.grpc_client.GetObjectStatus": _FAILS,
    "NodeManagerService.grpc_client.RequestWorkerLease": _FAILS,
    "NodeManagerService.grpc_client.ReturnWorkerLease": _FAILS,
}


@dataclass(frozen=True)
class Published:
    """What readers see."""

    predictions: pa.Table
    quarantine: pa.Table


@dataclass(frozen=True)
class Trial:
    """What all seeds have in common."""

    folder: Path
    num_rows: int
    fault: str
    task: str = "classify"

    @property
    def num_slices(self) -> int:
        return -(-self.num_rows // UNIT_ROWS)

    def run(self, name: str, blows: Sequence[str], seed: int) -> Outcome:
        """Run the job once under blows; what is broken is said in the outcome."""
        folder = self.folder / name
        folder.mkdir()
        source = {"format": "parquet", "id_column": "id", "pass_through": ["camera"]}
        job = write_job(
            folder / "job.yaml",
            {"uri": str(self.folder / "in"), **source},
            str(folder / "out"),
            run={"slice_rows": UNIT_ROWS},
            **MODELS[self.task],
        )
        with RayNodes(NUM_NODES[self.fault], share_folder=seed % 2 == 0) as nodes:
            disturbed = Disturbed(nodes, job, folder / "out", seed)
            try:
                return disturbed.run(blows, self.num_slices)
            except Broken as error:
                disturbed.outcome.broken = str(error)
                return disturbed.outcome

    def read(self, name: str) -> Published:
        """Read what a run published.

        Raises:
            Broken: It published nothing, or what does not prove right.
        """
        out = self.folder / name / "out"
        store = Store(str(out))
        manifest = current_manifest(store, Layout(PARTITION))
        if manifest is None:
            raise Broken("nothing is published")
        verified = pipeline("verify", str(out), "--json")
        if verified.code or verified.json["status"] != "ok":
            raise Broken(f"verify exits with {verified.code}: {verified.stdout[-600:]}")
        parts = [read_part(store, part) for part in manifest.quarantine_parts]
        quarantine = pa.concat_tables(parts).drop_columns(["run_id"])
        return Published(read_predictions(str(out), PARTITION), quarantine)

    def try_seed(self, seed: int, whole: Published, limit_s: float) -> Outcome:
        name = f"seed-{seed}"
        failing = {RPC_FAILURE: json.dumps(FAILING_CALLS)} if self.fault == "rpc" else {}
        with patch.dict(os.environ, failing):  # of Ray's processes, driver and workers
            outcome = self.run(name, BLOWS[self.fault], seed)
        try:
            if not outcome.broken:
                require_equal(self.read(name), whole)
                require_resumed(outcome)
                if outcome.wall_s > limit_s:
                    raise Broken(f"more than {limit_s:.0f} s")
        except Broken as error:
            outcome.broken = str(error)
        return outcome


def require_equal(published: Published, expected: Published) -> None:
    """Compare row by row, in order.

    Raises:
        Broken: A row is lost, there twice, another one, or in quarantine for nothing.
    """
    for what in ("quarantine", "predictions"):
        ours, theirs = getattr(published, what), getattr(expected, what)
        ids = Counter(ours.column("row_id").to_pylist())
        wanted = Counter(theirs.column("row_id").to_pylist())
        if ids != wanted:
            lost, more = [*(wanted - ids)][:5], [*(ids - wanted)]
            rows = [row for row in ours.to_pylist() if row["row_id"] in more][:5]
            raise Broken(f"{what}: lost {lost}, too many {rows}")
        if not ours.equals(theirs):
            names = [n for n in theirs.column_names if not ours[n].equals(theirs[n])]
            raise Broken(f"{what}: columns {names} differ")


def require_resumed(outcome: Outcome) -> None:
    """Hold the last run to what was committed when the driver was killed.

    Raises:
        Broken: Some of it was computed again.
    """
    resumed = outcome.report["slices"]["resumed"]
    if resumed < outcome.staged_when_killed:
        raise Broken(f"of {outcome.staged_when_killed} finished slices {resumed} were taken over")


def figures_of(outcome: Outcome, whole_s: float) -> dict[str, Any]:
    return {
        "seed": outcome.seed,
        "blows": outcome.blows,
        "missed": outcome.missed,
        "wall_s": round(outcome.wall_s, 1),
        "ratio": round(outcome.wall_s / whole_s, 2),
        "isolation": outcome.report.get("isolation"),
        "broken": outcome.broken,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--fault", choices=sorted(BLOWS), default="kill")
    parser.add_argument("--task", choices=sorted(MODELS), default="classify")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--max-ratio", type=float, default=3.0, help="of the undisturbed time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        trial = Trial(Path(name), options.rows, options.fault, options.task)
        num_bad = options.rows // BAD_EVERY
        build_parquet(trial.folder / "in", options.rows, 1, trial.num_slices, num_bad)
        undisturbed = trial.run("whole", [], seed=1)
        if undisturbed.broken:
            sys.exit(f"undisturbed: {undisturbed.broken}")
        whole, whole_s = trial.read("whole"), undisturbed.wall_s
        print(f"undisturbed: {whole_s:.1f} s", flush=True)
        is_broken = False
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            outcome = trial.try_seed(seed, whole, options.max_ratio * whole_s)
            print(json.dumps(figures_of(outcome, whole_s)), flush=True)
            is_broken |= bool(outcome.broken)
    sys.exit(int(is_broken))


if __name__ == "__main__":
    main()
