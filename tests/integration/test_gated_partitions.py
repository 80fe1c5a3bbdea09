"""Gates refuse what must not be published: partitions pass, are refused, are accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.runs.cli import Result, pipeline, write_job
from support.runs.published import snapshot

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest
from pipeline.storage.store import Store

pytestmark = [pytest.mark.no_ray, pytest.mark.early]

RED, GREEN, BLUE, GREY = (230, 20, 20), (20, 230, 20), (20, 20, 230), (200, 200, 200)
DRIFT = {"mode": "fail", "min_rows": 50}


def make_photos(
    folder: Path, num_rows: int, colours: list[tuple[int, int, int]], seed: int
) -> None:
    """Small photos of a colour each, no two alike."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for row in range(num_rows):
        noise = rng.integers(-20, 20, 3)
        colour = tuple(int(c) for c in np.array(colours[row % len(colours)]) + noise)
        Image.new("RGB", (32, 32), colour).save(folder / f"{row:03d}.png")


class Partitions:
    """One output; a partition is a date and a folder of photos."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store(str(folder / "out"))

    def job(self, date: str) -> str:
        gates = {
            "min_rows": 20,
            "max_error_pct": 5.0,
            "label_drift": DRIFT,
            "score_drift": {"mode": "off"},
            "golden": {"uri": str(self.folder / "golden.parquet")},
        }
        source = {"uri": str(self.folder / "in" / date), "format": "images"}
        return write_job(
            self.folder / "job.yaml", source, self.store.uri, gates=gates, run={"slice_rows": 16}
        )

    def run(self, date: str, *arguments: str) -> Result:
        return pipeline("run", self.job(date), "--date", date, "--json", *arguments)

    def published(self, date: str) -> Manifest | None:
        return current_manifest(self.store, Layout(f"date={date}"))

    def bytes_of(self, date: str) -> dict[str, str]:
        places = [f"{folder}/date={date}" for folder in ("predictions", "quarantine")]
        return snapshot(self.store, *places, f"_control/date={date}/log")

    def last_report(self, date: str) -> dict[str, Any]:
        runs = self.store.list_folders(f"reports/date={date}")
        path = f"reports/date={date}/{runs[-1]}"
        assert b"Gates" in self.store.read_bytes(f"{path}/report.html")
        return json.loads(self.store.read_bytes(f"{path}/report.json"))


def statuses(gates: list[dict[str, Any]] | tuple[dict[str, Any], ...]) -> dict[str, str]:
    return {gate["name"]: gate["status"] for gate in gates}


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_partitions_are_passed_warned_of_refused_and_accepted(tmp_path: Path) -> None:
    usual = [RED, GREEN, BLUE]
    make_photos(tmp_path / "in" / "2026-11-20", 96, usual, seed=1)
    make_photos(tmp_path / "in" / "2026-11-21", 60, [RED, RED, RED, GREY], seed=2)
    make_photos(tmp_path / "in" / "2026-11-23", 96, usual, seed=3)
    for row in range(10):
        (tmp_path / "in" / "2026-11-23" / f"{row:03d}.png").write_bytes(b"not an image")
    partitions = Partitions(tmp_path)
    _make_golden(partitions)
    _the_first_partition_is_recorded(partitions)
    _another_world_is_refused_and_accepted(partitions)
    _a_wrong_model_is_refused_before_it_predicts(partitions)
    _errors_stop_the_reading_early(partitions)


def _make_golden(partitions: Partitions) -> None:
    out = str(partitions.folder / "golden.parquet")
    done = pipeline("golden", partitions.job("2026-11-20"), "--rows", "6", "--out", out)
    assert done.code == 0, done.stderr
    assert pq.read_table(out).num_rows == 6


def _the_first_partition_is_recorded(partitions: Partitions) -> None:
    done = partitions.run("2026-11-20")
    assert done.code == 0, done.stderr
    status = statuses(done.json["gates"])
    assert (status["volume"], status["label_drift"]) == ("off", "off")
    assert (status["golden"], status["constant"], status["max_error_pct"]) == ("pass",) * 3
    golden = next(gate for gate in done.json["gates"] if gate["name"] == "golden")
    assert golden["message"].startswith(("6 of 6 golden rows agree, on 1", "12 of 12"))
    manifest = partitions.published("2026-11-20")
    assert manifest is not None
    assert manifest.distribution["labels"] == {"red": 32, "green": 32, "blue": 32}
    assert sum(manifest.distribution["numbers"]["score"]["counts"].values()) == 96


def _another_world_is_refused_and_accepted(partitions: Partitions) -> None:
    date = "2026-11-21"
    first = partitions.run(date, "--set", "gates.label_drift.mode=warn")
    assert first.code == 0, first.stderr
    status = statuses(first.json["gates"])
    assert (status["volume"], status["label_drift"], status["golden"]) == ("warn", "warn", "pass")
    shown = " ".join(first.stderr.split())
    assert "gate volume warns: 60 rows, -37.5% from the median 96 of 1 earlier partition" in shown
    assert "gate label_drift warns: PSI" in shown
    before = partitions.bytes_of(date)
    again = ["--set", "model.top_k=2"]  # to replace that version, with the gate as the job has it

    refused = partitions.run(date, *again)
    assert refused.code == 3, refused.stderr
    assert "label_drift: PSI" in refused.stderr
    assert "of date=2026-11-20" in refused.stderr
    assert partitions.bytes_of(date) == before
    report = partitions.last_report(date)
    assert (report["status"], statuses(report["gates"])["label_drift"]) == ("refused", "fail")

    wrong = partitions.run(date, *again, "--accept", "label_drift=")
    assert wrong.code == 2
    accepted = partitions.run(date, *again, "--accept", "label_drift=a new camera = fine")
    assert accepted.code == 0, accepted.stderr
    assert accepted.json["rows"]["computed"] == 0, "the refused run's slices are taken over"
    manifest = partitions.published(date)
    assert manifest is not None
    assert manifest.number == 2
    for gates in (manifest.gates, accepted.json["gates"]):
        gate = next(gate for gate in gates if gate["name"] == "label_drift")
        assert (gate["status"], gate["reason"]) == ("accepted", "a new camera = fine")
    assert statuses(manifest.gates)["golden"] == "pass", "of the run that computed the slices"


def _a_wrong_model_is_refused_before_it_predicts(partitions: Partitions) -> None:
    date = "2026-11-23"
    labels = json.dumps(["dark", "bright", "blue", "red", "green"])
    refused = partitions.run(date, "--set", f"model.labels={labels}")
    assert refused.code == 3, refused.stderr
    assert "golden: 6 of 6 golden rows differ on an actor of" in refused.stderr
    assert re.search(r"expected '(red|green|blue)' 0\.\d+, found '\w+' 0\.\d+", refused.stderr)
    assert refused.stderr.endswith("or the device is faulty\n"), "and nothing of Ray's"
    staged = partitions.store.list_files(f"_control/date={date}/staging")
    assert [file for file in staged if file.path.endswith(".parquet")] == []
    assert partitions.published(date) is None
    report = partitions.last_report(date)
    assert statuses(report["gates"]) == {"golden": "fail"}


def _errors_stop_the_reading_early(partitions: Partitions) -> None:
    date = "2026-11-23"
    refused = partitions.run(date)
    assert refused.code == 3, refused.stderr
    assert "max_error_pct: 10 of 96 rows quarantined, 10.42%; limit 5%" in refused.stderr
    assert "of 96 rows, so reading stopped there; finished slices are kept" in refused.stderr
    assert partitions.store.list_files(f"_control/date={date}/staging") != []
    assert "e.g. " in refused.stderr, "one of the rows, and why"
    assert "; to publish anyway: --accept max_error_pct=REASON" in refused.stderr
    report = partitions.last_report(date)
    assert statuses(report["gates"]) == {"max_error_pct": "fail"}
    assert sum(failure["num_rows"] for failure in report["top_failures"]) == 10
    accepted = ["--accept", "max_error_pct=ten photos are lost", "--accept", "label_drift=back"]
    done = partitions.run(date, *accepted)
    assert done.code == 0, done.stderr
    assert done.json["rows"]["resumed"] >= 16
    assert done.json["top_failures"] == report["top_failures"], "those of resumed slices, too"
    assert (done.json["rows"]["predicted"], done.json["rows"]["quarantined"]) == (86, 10)
    status = statuses(done.json["gates"])
    assert (status["max_error_pct"], status["label_drift"]) == ("accepted", "accepted")
    assert pipeline("verify", partitions.store.uri, "--partition", f"date={date}").code == 0
