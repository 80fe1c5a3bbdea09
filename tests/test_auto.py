"""`auto` takes what ends first among what agrees, once for a plan; and it is all on record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli import pipeline, write_job
from models import LABELS

from pipeline.allocation import Allocation
from pipeline.auto import candidates, choose
from pipeline.errors import JobError
from pipeline.model import ModelSpec
from pipeline.photos import build_images
from pipeline.task import TaskSpec
from pipeline.trial import Trial

ALLOCATION = Allocation(2, 2, 0.9, 0.0, 1, 1, 1, 1)
EAGER = Trial("eager", "fp32", rows_per_s=10, load_s=1, agreement_pct=100)
COMPILED = Trial("compile", "bf16", rows_per_s=100, load_s=20, agreement_pct=99.5)
WRONG = Trial("openvino", "bf16", rows_per_s=1000, load_s=1, agreement_pct=98.0)
DEAD = Trial("onnxruntime", "fp32", problem="died")
ALL = [EAGER, COMPILED, WRONG, DEAD]


@pytest.mark.parametrize(
    ("num_rows", "chosen"), [(20, EAGER), (400, EAGER), (440, COMPILED), (None, COMPILED)]
)
def test_starting_up_counts(num_rows: int | None, chosen: Trial):
    # 10 rows/s from 1 s on or 100 rows/s from 20 s on, for two actors: even at 422 rows.
    assert choose(ALL, 99.0, num_rows, ALLOCATION) == chosen


def test_what_agrees_too_little_is_not_taken_however_fast():
    assert choose(ALL, 99.9, None, ALLOCATION) == EAGER
    assert choose(ALL, 98.0, None, ALLOCATION) == WRONG
    with pytest.raises(JobError, match="onnxruntime fp32: died"):
        choose([DEAD], 0.0, None, ALLOCATION)


def spec(runtime: str, precision: str) -> ModelSpec:
    task = TaskSpec("classify", labels=("a",))
    return ModelSpec("m", "factory", "", None, None, None, task, precision, runtime)


def test_only_what_is_auto_is_free():
    everything = candidates(spec("auto", "auto"), is_on_gpu=False)
    assert len(set(everything)) == len(everything) > 5
    assert not any(precision in ("fp16", "tf32") for _, precision in everything)
    assert ("compile", "fp16") in candidates(spec("auto", "auto"), is_on_gpu=True)
    assert candidates(spec("compile", "auto"), is_on_gpu=False) == [
        ("compile", "fp32"),
        ("compile", "bf16"),
    ]
    assert candidates(spec("eager", "fp32"), is_on_gpu=False) == [("eager", "fp32")]
    assert candidates(spec("auto", "int8"), is_on_gpu=False) == [
        ("onnxruntime", "int8"),
        ("openvino", "int8"),
    ]
    assert candidates(spec("auto", "int8"), is_on_gpu=True) == []


def test_a_run_measures_once_and_says_what_it_chose(tmp_path: Path) -> None:
    build_images(tmp_path / "images", 40, seed=12, num_bad=2)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    model = {"factory": "models:colours", "labels": LABELS, "runtime": "eager"}
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        model={**model, "precision": "auto"},
        run={"slice_rows": 16},
    )
    done = pipeline("run", job, "--json")
    assert done.code == 0, done.stderr
    (choice,) = (tmp_path / "out").rglob("choice/*.json")
    chosen = json.loads(choice.read_text())
    found = done.json["model"]
    assert (found["runtime"], found["precision"]) == ("eager", chosen["precision"])
    assert found["agreement_pct"] >= 99.0
    gate = next(gate for gate in done.json["gates"] if gate["name"] == "min_agreement_pct")
    assert gate["status"] == ("off" if chosen["precision"] == "fp32" else "pass")
    again = pipeline("run", job, "--json")
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")


def test_shrinking_is_measured_before_it_is_used(tmp_path: Path) -> None:
    build_images(tmp_path / "images", 12, seed=13, num_bad=0)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    job = write_job(
        tmp_path / "job.yaml", source, str(tmp_path / "out"), transform={"shrink_on_load": True}
    )
    # At 32 px one photo of twelve gets another label.
    refused = pipeline("run", job, "--json")
    assert refused.code == 2
    assert "91.7% of rows agree" in refused.stderr
    done = pipeline("run", job, "--json", "--set", "gates.min_agreement_pct=90")
    assert done.code == 0, done.stderr
    assert round(done.json["model"]["agreement_pct"], 1) == 91.7
    (choice,) = (tmp_path / "out").rglob("choice/*.json")
    assert json.loads(choice.read_text())["runtime"] == "eager"


@pytest.mark.slow
def test_tune_tries_everything_and_publishes_nothing(tmp_path: Path) -> None:
    build_images(tmp_path / "images", 40, seed=12, num_bad=2)
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    tuned = pipeline("tune", job, "--json", "--set", "model.batch_size=16")
    assert tuned.code == 0, tuned.stderr
    tried = {(trial["runtime"], trial["precision"]) for trial in tuned.json["trials"]}
    assert tried == set(candidates(spec("auto", "auto"), is_on_gpu=False))
    assert not any(trial["problem"] for trial in tuned.json["trials"])
    assert not (tmp_path / "out" / "predictions").exists()
