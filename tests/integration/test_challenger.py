"""A second model in the same pass: what is published is as without it, whatever it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from models import LABELS
from PIL import Image
from support.inputs.encoded import base_image, encode
from support.runs.cli import pipeline as command
from support.runs.cli import write_job

import pipeline
from pipeline.commit.layout import CHALLENGER

NUM_ROWS, SLICE_ROWS = 24, 8
DAY = "date=2026-11-24"
SCALED = {
    "factory": "models:scaled",
    "args": {"scale": 0.25, "order": [0, 1, 2, 4, 3]},
    "labels": LABELS,
}
DEADLY = {"factory": "models:deadly", "labels": LABELS}


def build(folder: Path, num_rows: int = NUM_ROWS, colours: Mapping[int, str] = {}) -> None:
    """Photos of noise, some of a single colour instead."""
    folder.mkdir()
    for row in range(num_rows):
        photo = base_image(row)
        if row in colours:
            photo = Image.new("RGB", (40, 40), colours[row])
        (folder / f"{row:02d}.png").write_bytes(encode(photo, "PNG"))


def job(folder: Path, name: str, challenger: Any = None, **run: Any) -> str:
    model: dict[str, Any] = {"factory": "models:colours", "labels": LABELS}
    return write_job(
        folder / f"{name}.yaml",
        {"uri": str(folder / "in"), "format": "images"},
        str(folder / name),
        model={**model, **({"challenger": challenger} if challenger else {})},
        run={"slice_rows": SLICE_ROWS, **run},
    )


def run(job_file: str, **env: str) -> Any:
    done = command("run", job_file, "--date", "2026-11-24", "--json", env=env or None)
    assert done.code == 0, done.stderr
    return done


def rows_of(output: Path) -> list[dict[str, Any]]:
    return list(pipeline.open_output(output).latest.predictions())


def pages_of(output: Path) -> list[bytes]:
    """The bytes of the rows of all parts: all but the footers, which name the run."""
    found = []
    for path in sorted((output / "predictions" / DAY).glob("*.parquet")):
        data = path.read_bytes()
        found.append(data[: -8 - int.from_bytes(data[-8:-4], "little")])
    return found


def compared(output: Path) -> dict[str, Any]:
    [path] = (output / "reports" / DAY).glob(f"*/{CHALLENGER}.json")
    document: dict[str, Any] = json.loads(path.read_text())
    return document


@pytest.mark.one_ray
@pytest.mark.slow
def test_what_is_published_is_as_without_it_and_its_own_lies_beside(tmp_path: Path) -> None:
    build(tmp_path / "in")
    run(job(tmp_path, "alone"))
    both = job(tmp_path, "both", SCALED)
    done = run(both)
    assert pages_of(tmp_path / "both") == pages_of(tmp_path / "alone")
    [decoded] = [stage for stage in done.json["stages"] if stage["stage"] == "decode"]
    assert decoded["rows_in"] == NUM_ROWS, "decoded once"
    for output in ("both", f"both/{CHALLENGER}"):
        assert command("verify", str(tmp_path / output)).code == 0
    ours, theirs = rows_of(tmp_path / "both"), rows_of(tmp_path / "both" / CHALLENGER)
    assert [row["row_id"] for row in ours] == [row["row_id"] for row in theirs]
    found = compared(tmp_path / "both")
    agreeing = sum(
        a["label"] == b["label"] and abs(a["score"] - b["score"]) <= 0.001
        for a, b in zip(ours, theirs, strict=True)
    )
    assert found["rows"] == NUM_ROWS
    assert found["diff"]["rows"]["both"] == NUM_ROWS
    assert found["diff"]["rows"]["changed"] == NUM_ROWS - agreeing > 0

    promoted = str(tmp_path / "promoted.yaml")
    done = command("promote", both, "--out", promoted, "--json")
    assert (done.code, done.json["model"]) == (0, "models:scaled")
    text = Path(promoted).read_text().replace(str(tmp_path / "both"), str(tmp_path / "new"))
    Path(promoted).write_text(text)
    run(promoted)
    assert rows_of(tmp_path / "new") == theirs


@pytest.mark.slow
def test_its_crash_hang_and_lack_of_memory_cost_its_own_slices(tmp_path: Path) -> None:
    colours = {10: "#ff00ff", 26: "#00ffff", 34: "#000000"}
    reasons = {1: "native_crash", 3: "timeout", 4: "out_of_memory", 5: "model_error"}
    build(tmp_path / "in", 6 * SLICE_ROWS, colours)
    run(job(tmp_path, "alone"))
    both = job(tmp_path, "both", DEADLY, row_timeout_s=10.0)
    run(both)
    assert pages_of(tmp_path / "both") == pages_of(tmp_path / "alone")
    own = tmp_path / "both" / CHALLENGER
    assert command("verify", str(own)).code == 0
    theirs = pipeline.open_output(own).latest
    failed = list(theirs.quarantine())
    by_slice = {int(row["row_id"][:2]) // SLICE_ROWS: row["reason"] for row in failed}
    assert by_slice == reasons
    assert len(failed) == len(reasons) * SLICE_ROWS
    assert all("given up after 3 slices" in row["message"] for row in failed[-SLICE_ROWS:])
    assert len(theirs.predictions()) == 2 * SLICE_ROWS
    assert compared(tmp_path / "both")["agreement_pct"] == 100.0
    assert command("gc", both, "--date", "2026-11-24", "--grace-s", "0").code == 0
    assert list(own.glob(f"_control/{DAY}/staging/**/*.parquet")) == []
    assert command("verify", str(own)).code == 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an input, and what is published of it without a challenger."""
    folder = tmp_path_factory.mktemp("alone")
    build(folder / "in")
    run(job(folder, "alone"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "challenger", "told"),
    [
        ("unloadable", {"factory": "models:unloadable"}, "24 have no prediction of it"),
        ("gone", {"path": "/nowhere/model"}, "there is no challenger"),
        (
            "other columns",
            {"factory": "models:colours", "task": "embed", "embedding_dim": 5},
            "gives embedding",
        ),
    ],
)
def test_one_that_cannot_be_used_changes_nothing(
    alone: Path, name: str, challenger: dict[str, Any], told: str
) -> None:
    if "unloadable" in name:
        challenger = {**challenger, "labels": LABELS}
    done = run(job(alone, name, challenger))
    assert pages_of(alone / name) == pages_of(alone / "alone")
    assert told in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("point", ["slice_done", "after_log"])
def test_a_killed_run_goes_on_and_both_are_whole(alone: Path, point: str) -> None:
    both = job(alone, point, SCALED)
    killed = command(
        "run", both, "--date", "2026-11-24", env={"PIPELINE_FAILPOINT": f"{point}:kill"}
    )
    assert killed.code != 0
    run(both)
    assert pages_of(alone / point) == pages_of(alone / "alone")
    for output in (alone / point, alone / point / CHALLENGER):
        assert command("verify", str(output)).code == 0
    assert len(rows_of(alone / point / CHALLENGER)) == NUM_ROWS
    assert compared(alone / point)["diff"]["rows"]["both"] == NUM_ROWS


@pytest.mark.parametrize(
    ("section", "field", "told"),
    [
        ("resources", {"num_gpus": 1}, "resources.num_gpus"),
        ("run", {"dedupe": True}, "run.dedupe"),
        ("run", {"reuse": "content"}, "run.reuse"),
        ("model", {"challenger": {"path": "a", "name": "b"}}, "challenger: .*exactly one"),
        ("model", {"challenger": {**SCALED, "challenger": SCALED}}, "one is enough"),
    ],
)
def test_what_does_not_go_with_a_challenger_is_refused(
    tmp_path: Path, section: str, field: dict[str, Any], told: str
) -> None:
    sections: dict[str, Any] = {
        "source": {"uri": str(tmp_path), "format": "images"},
        "model": {"factory": "models:colours", "labels": LABELS, "challenger": SCALED},
        "sink": {"uri": str(tmp_path / "out")},
    }
    sections[section] = {**sections.get(section, {}), **field}
    with pytest.raises(pipeline.errors.JobError, match=told):
        pipeline.load_job(sections)


@pytest.mark.parametrize(
    ("challenger", "told"),
    [(SCALED, "models:scaled, eager fp32"), ({"path": "/nowhere/model"}, "none: ")],
)
def test_a_plan_names_the_challenger(tmp_path: Path, challenger: dict[str, Any], told: str) -> None:
    build(tmp_path / "in", 2)
    found = pipeline.plan(
        job(tmp_path, "both", challenger), date="2026-11-24", allow_import=["models"], tries=False
    )
    assert found["model"]["challenger"].startswith(told)


def test_only_a_job_with_a_challenger_is_promoted(tmp_path: Path) -> None:
    build(tmp_path / "in")
    done = command("promote", job(tmp_path, "alone"), "--out", str(tmp_path / "new.yaml"))
    assert done.code == 2
    assert "has no model.challenger" in done.stderr
    assert not (tmp_path / "new.yaml").exists()
