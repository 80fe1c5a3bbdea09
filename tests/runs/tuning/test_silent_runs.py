"""Test what a job that sets neither runtime nor precision takes, keeps and leaves alone."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from models import LABELS
from support.runs.cli import environment, photos_job, pipeline

from pipeline.execution.cluster.connect import connect
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.job.reading.loader import read_job
from pipeline.models.spec import EAGER, FP32, ModelSpec
from pipeline.planning.allocation import allocate
from pipeline.planning.plan import Plan
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.tuning import trials
from pipeline.runs.tuning.auto import opened, resolve_runtime
from pipeline.runs.tuning.choice import Choice
from pipeline.runs.tuning.profile import Profile, keep_profile, load_profile, machines_of
from pipeline.runs.tuning.selection import GIVEN_UP, UNASKED_ROWS, Budget, Trial
from pipeline.runs.tuning.trial_context import TuningContext
from pipeline.runs.tuning.trials import try_ways

FIRST, NEXT = ("--date", "2026-11-24"), ("--date", "2026-11-25")
STOP = {"PIPELINE_FAILPOINT": "slice_done:term"}
MANY = 10**9
LIMITED = ["run.limit_rows=500"]
REFERENCE = "eager fp32, with which others are compared"


def silent_job(folder: Path, factory: str = "colours") -> str:
    model = {"factory": f"models:{factory}", "labels": LABELS, "runtime": None}
    return photos_job(folder, 40, model=model, run={"slice_rows": 16})


def prepared(job: str, *overrides: str) -> tuple[RunContext, Plan, ModelSpec]:
    """A run of a job file, with its plan and its model."""
    loaded = read_job(job, date=dt.date(2026, 11, 24), overrides=overrides)
    run = RunContext.of(loaded, RunOptions(allow_import=("models",)))
    return run, *prepare(run)


def tuning_of(job: str) -> TuningContext:
    """As a run on this machine has it."""
    run, plan, model = prepared(job)
    here = embedded_hardware()
    allocation = allocate(run.job.resources, here, cost="image")
    machines = machines_of(on_cluster=False)
    return TuningContext(run, plan, opened(model), here, allocation, machines=machines)


@pytest.mark.ray
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
    section = resumed.json["model"]
    assert (section["runtime"], section["choice"]["reason"]) == ("eager", "unknown")
    assert "openvino is not measured" in section["choice"]["text"]

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
    section = done.json["model"]
    assert (section["runtime"], section["precision"]) == ("openvino", "fp32")
    assert (section["choice"]["reason"], section["choice"]["measured_by"]) == ("known", "tune")
    assert section["choice"]["text"].startswith(says)
    gates = {gate["name"]: gate["status"] for gate in done.json["gates"]}
    assert gates["min_agreement_pct"] == "pass", "the reference check judges it"

    pinned = pipeline("plan", job, *NEXT, "--json", "--no-try", "--set", "model.runtime=eager")
    assert pinned.json["a_run_would"] == "replace version 1"
    assert pinned.json["model"]["choice"] == "eager fp32, as the job says"


@pytest.fixture
def tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningContext:
    return tuning_here(tmp_path, monkeypatch, "slow_colours")


def tuning_here(folder: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> TuningContext:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    for name in ("PYTHONPATH", "PIPELINE_ALLOW_IMPORT"):
        monkeypatch.setenv(name, environment()[name])
    return tuning_of(silent_job(folder, factory))


def settled(
    tuning: TuningContext,
    job: str,
    num_rows: int | None,
    fingerprint: str = "",
    overrides: Sequence[str] = (),
) -> tuple[Choice, list[str]]:
    """Return what a run of so many rows chooses, and what it says while it measures."""
    run, plan, model = prepared(job, *overrides)
    plan = replace(plan, fingerprint=fingerprint or plan.fingerprint, input_bytes=MANY)
    vars(plan)["num_rows"] = num_rows  # computed once, of units that would have to be there
    messages: list[str] = []
    resolved = resolve_runtime(
        *(run, plan, model, tuning.hardware, tuning.allocation), say=messages.append
    )
    choice = resolved.plan.model["choice"]
    return Choice(Trial(resolved.model.runtime, FP32), choice["reason"], choice["text"]), messages


@pytest.mark.ray
@pytest.mark.slow
def test_a_long_run_measures_first_and_the_next_one_goes_by_its_figures(
    tuning: TuningContext, tmp_path: Path
) -> None:
    job = str(tmp_path / "job.yaml")
    with connect(None):
        first, messages = settled(tuning, job, MANY)
        again, messages_again = settled(tuning, job, MANY, "a" * 64)
    assert (first.reason, messages[0]) == ("measured", f"trying {REFERENCE}")
    assert first.way.runtime != EAGER, "it sleeps in torch alone"
    assert any(text.startswith("trying openvino fp32, for at most ") for text in messages)
    assert (again.reason, again.way.runtime, messages_again) == ("known", first.way.runtime, [])
    profile = load_profile(tuning)
    ways = {trial.runtime: trial for trial in profile.ways}
    assert ways.keys() >= {EAGER, "openvino", "onnxruntime"}
    assert "compile" not in ways, "what it compiles is not kept"
    for trial in (ways[EAGER], ways["openvino"]):
        assert (trial.problem, trial.precision, trial.agreement_pct) == ("", FP32, 100.0)
        assert 0 < trial.num_compared <= UNASKED_ROWS
        assert min(trial.rows_per_s, trial.took_s) > 0
    # What it measured lies with the output, too, for machines whose caches do not last.
    (kept,) = (tmp_path / "out" / "_control" / "profiles").iterdir()
    assert (tmp_path / "cache" / "batch-inference-pipeline" / "profiles" / kept.name).exists()


@pytest.mark.ray
@pytest.mark.slow
def test_what_fails_while_it_is_measured_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connect(None):
        for name, factory, limit_s in (("dead", "unloadable", 120.0), ("late", "colours", 0.0)):
            monkeypatch.setattr(trials, "TRIAL_S", limit_s)
            (tmp_path / name).mkdir()
            tuning = tuning_here(tmp_path / name, monkeypatch, factory)
            resolved, messages = settled(tuning, str(tmp_path / name / "job.yaml"), MANY)
            assert (resolved.way.runtime, resolved.reason) == (EAGER, "unknown"), name
            assert messages == [f"trying {REFERENCE}"]
            assert load_profile(tuning) == Profile()


@pytest.mark.ray
@pytest.mark.slow
def test_a_trial_that_takes_more_than_its_share_is_ended_and_tried_again_later(
    tuning: TuningContext,
) -> None:
    class Little(Budget):
        left_s = 0.1

    vars(tuning.plan)["num_rows"] = MANY
    begun = Trial("openvino", FP32, problem=f"{GIVEN_UP} after 4 s", took_s=4.0, attempts=1)
    with connect(None):
        profile = try_ways(
            tuning,
            Little(is_asked=False),
            [(EAGER, FP32), ("openvino", FP32), ("onnxruntime", FP32)],
            Profile((begun,)),
        )
    trial = profile.of("openvino", FP32)
    assert trial is not None
    assert (trial.problem, trial.attempts) == (f"{GIVEN_UP} after 0 s", 2)
    assert profile.eager is not None
    assert profile.eager.rows_per_s > 0


def test_a_run_that_is_short_or_has_nothing_to_find_out_measures_nothing(
    tuning: TuningContext, tmp_path: Path
) -> None:
    job, eager = str(tmp_path / "job.yaml"), Trial(EAGER, FP32, 1_000.0, 1.0, 100.0, took_s=3.0)
    others = [Trial(name, FP32, problem="crashed") for name in ("openvino", "onnxruntime", "mnn")]
    num_actors = tuning.allocation.max_actors
    for number, (num_rows, known, text) in enumerate(
        [
            (900 * num_actors, (), "runs of a minute or more measure first"),
            (50_000 * num_actors, (eager,), "openvino is not measured"),
            (MANY, (eager, *others), "openvino cannot be used: crashed"),
            (None, (), "runs of a minute or more measure first"),
        ]
    ):
        keep_profile(tuning, Profile(known))
        resolved, messages = settled(tuning, job, num_rows, f"{number}" * 64, LIMITED)
        assert (resolved.way.runtime, messages) == (EAGER, []), text
        assert text in resolved.text
        assert load_profile(tuning) == Profile(known)


def test_without_a_row_nothing_is_measured(tuning: TuningContext, tmp_path: Path) -> None:
    run, plan, model = prepared(str(tmp_path / "job.yaml"), "model.runtime=auto")
    empty = replace(plan, units=(), fingerprint="e" * 64)
    resolved = resolve_runtime(run, empty, model, tuning.hardware, tuning.allocation)
    assert (resolved.model.runtime, resolved.model.precision) == (EAGER, FP32)


def test_a_choice_that_cannot_run_on_another_device_is_made_anew_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning = tuning_of(silent_job(tmp_path))
    run, _, model = prepared(str(tmp_path / "job.yaml"))
    path = f"{run.layout.control}/choice/{tuning.plan.fingerprint}.json"
    on_gpu = {"token": "t", **Choice(Trial(EAGER, "fp16"), "measured", "on a GPU").to_dict()}
    run.store.put(path, json.dumps(on_gpu).encode())
    for _ in range(2):
        messages: list[str] = []
        facts = (run, tuning.plan, model, tuning.hardware, tuning.allocation)
        resolved = resolve_runtime(*facts, say=messages.append)
        assert (resolved.model.runtime, resolved.model.precision) == (EAGER, FP32)
        assert messages == [
            "eager fp16, with which the work began, cannot run here: fp16 needs a GPU; on the "
            "CPU use fp32 or bf16; choosing anew"
        ]
        # A rerun on the first device goes on as it began.
        assert json.loads(run.store.read_bytes(path)) == on_gpu
    assert len([*(tmp_path / "out").rglob("choice/*.json")]) == 2


def test_a_damaged_choice_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tuning = tuning_of(silent_job(tmp_path))
    run, _, model = prepared(str(tmp_path / "job.yaml"))
    path = f"{run.layout.control}/choice/{tuning.plan.fingerprint}.json"
    facts = (run, tuning.plan, model, tuning.hardware, tuning.allocation)
    first = resolve_runtime(*facts)
    for damaged in (b"{", run.store.read_bytes(path).replace(b"fp32", b"fp31")):
        run.store.put(path, damaged)
        assert resolve_runtime(*facts).model == first.model
        assert "damaged, so it counts as missing" in caplog.text
        caplog.clear()
        assert resolve_runtime(*facts).model == first.model
        assert caplog.text == ""
