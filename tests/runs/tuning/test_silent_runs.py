"""A job that says neither runtime nor precision: what a run takes, keeps and leaves alone."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from pathlib import Path
from time import sleep

import pytest
from models import LABELS
from support.inputs.photos import build_images
from support.runs.cli import environment, pipeline, write_job

import pipeline.runs.tuning.beside as beside_module
from pipeline.commit.staging import StagedSlice
from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.job.reading.loader import read_job
from pipeline.models.spec import EAGER, FP32
from pipeline.planning.allocation import allocate
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.tuning.auto import opened, resolve_runtime
from pipeline.runs.tuning.beside import Beside
from pipeline.runs.tuning.choice import Choice
from pipeline.runs.tuning.profile import Profile, keep_profile, load_profile, machines_of
from pipeline.runs.tuning.trial import Trial
from pipeline.runs.tuning.trials.context import TuningContext, tuning_context

FIRST, NEXT = ("--date", "2026-11-24"), ("--date", "2026-11-25")
STOP = {"PIPELINE_FAILPOINT": "slice_done:term"}


def silent_job(folder: Path) -> str:
    build_images(folder / "images", 40, seed=12, num_bad=0)
    source = {"uri": str(folder / "images"), "format": "images"}
    model = {"factory": "models:colours", "labels": LABELS, "runtime": None}
    return write_job(
        *(folder / "job.yaml", source, str(folder / "out")), model=model, run={"slice_rows": 16}
    )


def tuning_of(job: str) -> TuningContext:
    """As a run on this machine has it."""
    loaded = read_job(job, date=dt.date(2026, 11, 24), overrides=[])
    run = RunContext.of(loaded, RunOptions(allow_import=("models",)))
    plan, model = prepare(run)
    here = embedded_hardware()
    allocation = allocate(run.job.resources, here, cost="image")
    machines = machines_of(on_cluster=False)
    return tuning_context(run, plan, opened(model), here, allocation, machines=machines)


@pytest.mark.slow
def test_unknown_stays_eager_known_is_taken_and_what_is_begun_or_published_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    job = silent_job(tmp_path)
    stopped = pipeline("run", job, *FIRST, env=STOP)
    assert stopped.code == 6, stopped.stderr
    tuning = tuning_of(job)
    assert load_profile(tuning) == Profile(), "so short a run measures nothing"
    eager = Trial(EAGER, FP32, rows_per_s=1.0, load_s=9.0, agreement_pct=100.0)
    fast = Trial(
        *("openvino", FP32, 1e6, 0.1, 100.0),
        num_compared=64,
        measured_by="tune",
        measured_at="2026-11-27",
    )
    keep_profile(tuning, Profile((eager, fast)))

    resumed = pipeline("run", job, *FIRST, "--json")
    assert resumed.code == 0, resumed.stderr
    assert resumed.json["slices"]["resumed"] > 0
    found = resumed.json["model"]
    assert (found["runtime"], found["choice"]["reason"]) == ("eager", "unknown")
    assert "nothing else is known of this model here" in found["choice"]["text"]

    planned = pipeline("plan", job, *FIRST, "--json", "--no-try")
    assert planned.json["a_run_would"].startswith("nothing")
    pinned = pipeline("plan", job, *FIRST, "--json", "--no-try", "--set", "model.runtime=eager")
    assert pinned.json["a_run_would"].startswith("nothing"), "it is of eager fp32"
    again = pipeline("run", job, *FIRST, "--json")
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")

    planned = pipeline("plan", job, *NEXT, "--json", "--no-try")
    says = "openvino fp32, as measured on 2026-11-27 by `pipeline tune`: 1e+06 times eager fp32"
    assert planned.json["model"]["choice"].startswith(says)
    done = pipeline("run", job, *NEXT, "--json")
    assert done.code == 0, done.stderr
    found = done.json["model"]
    assert (found["runtime"], found["precision"]) == ("openvino", "fp32")
    assert (found["choice"]["reason"], found["choice"]["measured_by"]) == ("known", "tune")
    assert found["choice"]["text"].startswith(says)
    gates = {gate["name"]: gate["status"] for gate in done.json["gates"]}
    assert gates["min_agreement_pct"] == "pass", "the reference check judges it"

    pinned = pipeline("plan", job, *NEXT, "--json", "--no-try", "--set", "model.runtime=eager")
    assert pinned.json["a_run_would"] == "replace version 1"
    assert pinned.json["model"]["choice"] == "eager fp32, as the job says"


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningContext:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("PYTHONPATH", "PIPELINE_ALLOW_IMPORT"):
        monkeypatch.setenv(name, environment()[name])
    return tuning_of(silent_job(tmp_path))


def first_slice(busy_s: float) -> StagedSlice:
    return StagedSlice("run", 16, counters={"predict": {"busy_s": busy_s}})


@pytest.mark.slow
def test_another_runtime_is_measured_beside_a_run_and_kept_for_the_next(
    tuning: TuningContext, tmp_path: Path
) -> None:
    with connect(None):
        beside = Beside(tuning, Profile())
        beside.advance(first_slice(16.0), 10.0, 10_000)
        while load_profile(tuning) == Profile():
            sleep(0.1)
            beside.advance(first_slice(16.0), 10.0, 10_000)
        beside.end()
    profile = load_profile(tuning)
    found = profile.of("openvino", FP32)
    assert found is not None
    assert profile.eager is not None
    assert found.problem == ""
    assert (found.agreement_pct, found.num_compared) == (100.0, 40)
    assert min(found.rows_per_s, profile.eager.rows_per_s, found.took_s) > 0
    assert beside.text.startswith("openvino is ")
    # What it measured lies with the output, too, for machines whose caches do not last.
    (kept,) = (tmp_path / "out" / "_control" / "profiles").iterdir()
    assert (tmp_path / "cache" / "batch-inference-pipeline" / "profiles" / kept.name).exists()


@pytest.mark.slow
def test_the_kernel_ends_a_trial_that_takes_more_than_its_share(
    tuning: TuningContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside_module, "LEAST_CPU_S", 0.1)
    with connect(None):
        beside = Beside(tuning, Profile())
        beside.advance(first_slice(0.1), 0.5, 600)
        while load_profile(tuning) == Profile():
            sleep(0.1)
            beside.advance(first_slice(0.1), 0.5, 600)
        beside.end()
    found = load_profile(tuning).of("openvino", FP32)
    assert found is not None
    assert (found.was_given_up, found.attempts) == (True, 1)
    assert 0 < found.took_s < 1, "so much it had"
    assert "openvino given up" in beside.text


def test_a_run_whose_tenth_is_too_short_says_so_and_tries_nothing(tuning: TuningContext) -> None:
    beside = Beside(tuning, Profile())
    beside.advance(first_slice(0.1), 5.0, 100)
    beside.end()
    assert beside.text.startswith("too short to try openvino")
    assert load_profile(tuning) == Profile()


def test_without_a_row_nothing_is_measured(tuning: TuningContext, tmp_path: Path) -> None:
    sections = ["model.runtime=auto"]
    job = read_job(str(tmp_path / "job.yaml"), date=dt.date(2026, 11, 24), overrides=sections)
    run = RunContext.of(job, RunOptions(allow_import=("models",)))
    plan, model = prepare(run)
    empty = replace(plan, units=(), fingerprint="e" * 64)
    found = resolve_runtime(run, empty, model, tuning.hardware, tuning.allocation)
    assert (found.model.runtime, found.model.precision) == (EAGER, FP32)


def test_what_was_chosen_on_another_device_is_chosen_anew_where_it_cannot_run_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning = tuning_of(silent_job(tmp_path))
    loaded = read_job(str(tmp_path / "job.yaml"), date=dt.date(2026, 11, 24), overrides=[])
    run = RunContext.of(loaded, RunOptions(allow_import=("models",)))
    _, model = prepare(run)
    path = f"{run.layout.control}/choice/{tuning.plan.fingerprint}.json"
    on_gpu = {"token": "t", **Choice(Trial(EAGER, "fp16"), "measured", "on a GPU").to_dict()}
    run.store.put(path, json.dumps(on_gpu).encode())
    for _ in range(2):
        said: list[str] = []
        facts = (run, tuning.plan, model, tuning.hardware, tuning.allocation)
        found = resolve_runtime(*facts, say=said.append)
        assert (found.model.runtime, found.model.precision) == (EAGER, FP32)
        assert said == [
            "eager fp16, with which the work was begun, cannot run here: fp16 needs a GPU; on the "
            "CPU use fp32 or bf16; choosing anew"
        ]
        # A rerun on the first device goes on as it began.
        assert json.loads(run.store.read_bytes(path)) == on_gpu
    assert len([*(tmp_path / "out").rglob("choice/*.json")]) == 2
