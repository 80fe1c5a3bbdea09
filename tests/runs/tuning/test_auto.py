"""Test that `auto` takes the fastest way that agrees, once per plan, and records it."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import replace
from pathlib import Path

import pytest
import toy_package
from models import LABELS
from support.runs.cli import photos_job, pipeline

from pipeline.core.errors import JobError
from pipeline.core.private_files import PROFILES, cache_folder
from pipeline.inference.hardware_facts import describe_processor, instruction_sets
from pipeline.inference.runtimes.usable import require_usable
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec
from pipeline.planning.allocation import Allocation
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.preprocessing.table_input import FeatureInput
from pipeline.runs.tuning.selection import (
    GIVEN_UP,
    Budget,
    Trial,
    batches_beside,
    best_batch,
    candidates,
    choose,
)

pytestmark = [pytest.mark.one_ray, pytest.mark.early]

TUNE_S = 600  # every runtime, precision and batch size; more if cores are shared
ALLOCATION = Allocation(2, 2, 0.9, 0.0, 1, 1, 1, 1)
EAGER = Trial("eager", "fp32", rows_per_s=10, load_s=1, agreement_pct=100)
COMPILED = Trial("compile", "bf16", rows_per_s=100, load_s=20, agreement_pct=99.5)
WRONG = Trial("openvino", "bf16", rows_per_s=1000, load_s=1, agreement_pct=98.0)
DEAD = Trial("onnxruntime", "fp32", problem="crashed")
ALL = [EAGER, COMPILED, WRONG, DEAD]


@pytest.mark.parametrize(
    ("num_rows", "chosen"), [(20, EAGER), (400, EAGER), (440, COMPILED), (None, COMPILED)]
)
def test_starting_up_counts(num_rows: int | None, chosen: Trial):
    # 10 rows/s from 1 s on or 100 rows/s from 20 s on, for two actors: even at 422 rows.
    assert choose(ALL, 99.0, num_rows, ALLOCATION) == chosen


def test_a_way_that_is_compared_again_may_agree_less_at_first():
    assert choose(ALL, 99.0, None, ALLOCATION, lambda trial: trial is WRONG) == WRONG
    assert choose(ALL, 99.0, None, ALLOCATION, lambda trial: 0.5 * (trial is WRONG)) == COMPILED


def test_a_fast_way_that_agrees_too_little_is_not_taken():
    assert choose(ALL, 99.9, None, ALLOCATION) == EAGER
    assert choose(ALL, 98.0, None, ALLOCATION) == WRONG
    with pytest.raises(JobError, match="onnxruntime fp32: crashed"):
        choose([DEAD], 0.0, None, ALLOCATION)


@pytest.mark.parametrize(
    ("rates", "size"),
    [
        ({8: 89.0, 32: 100.0, 128: 101.0}, 32),
        ({8: 89.0, 32: 90.0, 128: 101.0}, 128),
        ({8: 99.0, 32: 100.0, 128: 0.0}, 8),
        ({32: 100.0}, 32),
    ],
)
def test_the_smallest_of_equally_fast_batches_is_taken(rates: dict[int, float], size: int):
    assert best_batch(rates) == size


@pytest.mark.parametrize(
    ("rows", "slice_rows", "sizes"),
    [
        (32, [], [8, 128]),
        (32, [256, 40], [8, 128]),
        (32, [64], [8, 64]),
        (32, [32], [8]),
        (32, [20], [8, 20]),
        (2, [64], [8]),
    ],
)
def test_a_smaller_and_a_larger_batch_are_tried_and_none_beyond_a_slice(
    rows: int, slice_rows: list[int], sizes: list[int]
):
    usual = BatchLimits(rows)
    others = batches_beside(usual, slice_rows, counts_tokens=False)
    assert [limits.rows for limits in others] == sizes
    texts = batches_beside(BatchLimits(256, 1024), slice_rows, counts_tokens=True)
    assert texts == [(256, 256, 0), (256, 4096, 0)]


def test_a_run_tries_on_while_no_way_can_be_used():
    late = Trial("onnxruntime", "int8", problem=f"{GIVEN_UP} after 15 s")
    budget = Budget(clock=lambda: 0.0)
    for ways in ([], [DEAD], [WRONG], [DEAD, late]):
        assert budget.left_with(ways, 99.0) == math.inf
    for ways, least_pct in (([DEAD, EAGER], 99.0), ([WRONG], 98.0)):
        assert budget.left_with(ways, least_pct) == budget.left_s


def spec(runtime: str, precision: str) -> ModelSpec:
    task = TaskSpec("classify", labels=("a",))
    return ModelSpec("m", "factory", "", None, None, FeatureInput(), task, precision, runtime)


def test_only_auto_leaves_a_choice():
    everything = candidates(spec("auto", "auto"), is_on_gpu=False)
    assert len(set(everything)) == len(everything) > 5
    assert not any(precision in ("fp16", "tf32") for _, precision in everything)
    assert ("compile-quick", "fp16") in candidates(spec("auto", "auto"), is_on_gpu=True)
    assert candidates(spec("compile", "auto"), is_on_gpu=False) == [
        ("compile", "fp32"),
        ("compile", "bf16"),
    ]
    assert candidates(spec("eager", "fp32"), is_on_gpu=False) == [("eager", "fp32")]
    assert candidates(spec("auto", "int8"), is_on_gpu=False) == [
        ("openvino", "int8"),
        ("onnxruntime", "int8"),
    ]
    assert candidates(spec("auto", "int8"), is_on_gpu=True) == []


def test_a_task_says_which_runtimes_may_run_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    points = {"pipeline.tasks": {"spread": "toy_task:Spread"}}
    monkeypatch.syspath_prepend(toy_package.install(tmp_path / "site", points))
    task = TaskSpec("spread")
    models = {name: replace(spec(name, "auto"), task=task) for name in ("auto", "compile")}
    tried = {runtime for runtime, _ in candidates(models["auto"], is_on_gpu=False)}
    assert tried == {"eager", "onnxruntime", "openvino"}
    assert candidates(models["compile"], is_on_gpu=False) == []
    compiled = replace(models["compile"], precision="fp32")
    with pytest.raises(JobError, match="task 'spread' is run by eager, onnxruntime, openvino"):
        require_usable(compiled, is_on_gpu=False, is_here=False)


def test_a_run_measures_once_and_says_what_it_chose(tmp_path: Path) -> None:
    model = {"factory": "models:colours", "labels": LABELS, "precision": "auto"}
    job = photos_job(tmp_path, 40, num_bad=2, model=model, run={"slice_rows": 16})
    done = pipeline("run", job, "--json")
    assert done.code == 0, done.stderr
    (choice,) = (tmp_path / "out").rglob("choice/*.json")
    chosen = json.loads(choice.read_text())
    section = done.json["model"]
    assert (section["runtime"], section["precision"]) == ("eager", chosen["precision"])
    assert section["agreement_pct"] >= 99.0
    gate = next(gate for gate in done.json["gates"] if gate["name"] == "min_agreement_pct")
    assert gate["status"] == ("off" if chosen["precision"] == "fp32" else "pass")
    again = pipeline("run", job, "--json")
    assert (again.code, again.json["status"]) == (0, "nothing_to_do")


@pytest.mark.slow
def test_what_agreed_on_few_rows_is_compared_on_more_before_it_is_used(tmp_path: Path) -> None:
    # Its bf16 rounds all labels away.
    model = {"factory": "models:coarse", "labels": LABELS, "precision": "auto"}
    job = photos_job(tmp_path, 40, model=model)
    assert pipeline("tune", job, "--date", "2026-11-24", timeout_s=TUNE_S).code == 0
    (profile,) = (tmp_path / "out" / "_control" / "profiles").iterdir()
    measured = json.loads(profile.read_text())
    exact, coarse = measured["ways"]
    assert (exact["precision"], coarse["precision"], coarse["agreement_pct"]) == ("fp32", "bf16", 0)
    # As if the few rows that were compared had all come out alike.
    coarse |= {"agreement_pct": 100.0, "rows_per_s": 1e6, "load_s": 0.0, "problem": ""}
    for path in (profile, cache_folder() / PROFILES / profile.name):
        path.write_text(json.dumps(measured))
    done = pipeline("run", job, "--json", "--date", "2026-11-25")
    assert (done.code, done.json["model"]["precision"]) == (0, "fp32")
    measured = json.loads(profile.read_text())
    exact, coarse = measured["ways"]
    assert (exact["is_confirmed"], coarse["is_confirmed"]) == (False, True)
    assert coarse["agreement_pct"] == 0


@pytest.mark.slow
def test_shrinking_is_measured_before_it_is_used(tmp_path: Path) -> None:
    job = photos_job(tmp_path, 12, seed=13, transform={"shrink_on_load": True})
    # Which photos are told apart by it depends on the processor's instructions; some are.
    refused = pipeline("run", job, "--json", "--set", "gates.max_score_diff=0.00001")
    assert refused.code == 2
    assert "% of rows agree" in refused.stderr
    limit = ("--set", "gates.max_score_diff=0.2", "--set", "gates.min_agreement_pct=80")
    done = pipeline("run", job, "--json", *limit)
    assert done.code == 0, done.stderr
    assert 80 < done.json["model"]["agreement_pct"] <= 100
    assert done.json["model"]["agreement_worst"] > 1e-5
    (choice,) = (tmp_path / "out").rglob("choice/*.json")
    assert json.loads(choice.read_text())["runtime"] == "eager"


@pytest.mark.slow
@pytest.mark.parametrize("decode_in", ["actors", "tasks"])
def test_who_decodes_other_pixels_is_compared_with_exact_ones(
    tmp_path: Path, decode_in: str
) -> None:
    job = photos_job(
        tmp_path,
        12,
        seed=13,
        transform={"shrink_on_load": True},
        gates={"min_agreement_pct": 0.0, "max_score_diff": 0.0},
        resources={"decode_in": decode_in},
    )
    done = pipeline("run", job, "--json")
    assert done.code == 0, done.stderr
    gate = next(gate for gate in done.json["gates"] if gate["name"] == "min_agreement_pct")
    # The model is eager fp32 itself: from its own pixels all would agree.
    assert gate["value"] == pytest.approx(done.json["model"]["agreement_pct"])
    assert gate["value"] < 100


@pytest.mark.slow
@pytest.mark.timeout(TUNE_S + 300)
def test_tune_tries_everything_and_a_run_goes_by_it(tmp_path: Path) -> None:
    model = {"factory": "models:colours", "labels": LABELS, "runtime": "auto", "precision": "auto"}
    job = photos_job(tmp_path, 40, num_bad=2, model=model, resources=None)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    tuned = pipeline("tune", job, "--json", timeout_s=TUNE_S, env=environment)
    assert tuned.code == 0, tuned.stderr
    tried = {(trial["runtime"], trial["precision"]) for trial in tuned.json["runtimes"]}
    assert tried == set(candidates(spec("auto", "auto"), is_on_gpu=False))
    usable = {t["runtime"] for t in tuned.json["runtimes"] if t["precision"] == "fp32"}
    sizes = {
        runtime: {
            batch["batch"]
            for batch in tuned.json["batch_sizes"]
            if (batch["runtime"], batch["precision"]) == (runtime, "fp32")
        }
        for runtime in usable
    }
    assert sizes == {runtime: {8, 32, 40} for runtime in usable}, tuned.json["runtimes"]
    assert all(batch["rows_per_s"] > 0 for batch in tuned.json["batch_sizes"])
    assert not (tmp_path / "out" / "predictions").exists()
    done = pipeline("run", job, "--json", env=environment)
    assert done.code == 0, done.stderr
    section = done.json["model"]
    assert f"{section['runtime']} {section['precision']}" == tuned.json["chosen"]
    assert section["batch_size"] == tuned.json["batch_size"]


def test_processors_of_one_name_differ_by_their_instructions(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"

    def described(text: str) -> str:
        cpuinfo.write_text(text)
        return describe_processor(cpuinfo)

    old = described("model name\t: Xeon\nflags\t\t: fpu avx2 fma\n\nmodel name\t: Xeon\n")
    new = described("model name\t: Xeon\nflags\t\t: fma avx2 amx_tile fpu\n")
    assert (old, new) == ("Xeon avx2 fma", "Xeon amx_tile avx2 fma")
    assert "i8mm" in described("Features\t: fp asimd i8mm\n")
    assert instruction_sets(cpuinfo) == {"fp", "asimd", "i8mm"}
    assert describe_processor(tmp_path / "none") == platform.processor()
    assert instruction_sets(tmp_path / "none") == frozenset()
