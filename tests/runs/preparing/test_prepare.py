"""Test that table rows have large slices and batches, bounded by bytes."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import re
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from support.models import onnx_files
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import write_job
from support.runs.plan_examples import shard_extents
from support.runs.without_ray import without_ray

from pipeline.core.errors import JobError
from pipeline.dataflow import run_job
from pipeline.execution.cluster.hardware import embedded_hardware
from pipeline.inference import hardware_facts
from pipeline.inference.runtimes import runtime as runtimes
from pipeline.job.job import Job
from pipeline.job.reading.loader import read_job
from pipeline.operations.plan import plan
from pipeline.planning.allocation import allocate
from pipeline.planning.plan import Plan
from pipeline.planning.slicing import SliceSizes, make_units
from pipeline.runs.context import RunContext, RunOptions
from pipeline.runs.preparing.prepare import prepare
from pipeline.runs.progress import Silent


def job_of(folder: Path, *features: Any, **sections: Any) -> Job:
    source = {"uri": str(folder / "in"), "format": "parquet", "features": [*features]}
    model = {"factory": "models:sums", "task": "regress", "targets": ["a", "b"]}
    path = write_job(
        *(folder / "job.yaml", source, str(folder / "out")),
        **{"transform": None, "model": model, **sections},
    )
    return read_job(path, date=dt.date(2026, 11, 24))


def plan_of(job: Job) -> Plan:
    return prepare(RunContext.of(job, RunOptions(allow_import=("models",))))[0]


def write(folder: Path, **columns: Any) -> None:
    (folder / "in").mkdir()
    pq.write_table(pa.table(columns), folder / "in" / "a.parquet")


def sizes_of(job: Job, group_rows: int, num_groups: int, row_bytes: float) -> list[int]:
    extents = shard_extents([[group_rows] * num_groups], row_bytes)
    units = [*make_units(extents, SliceSizes.of(job, 2048, "classify"))]
    assert len(units) <= num_groups  # each row group is read once, from its beginning
    return [key.num_rows for unit in units for key in unit.slices()]


def test_ten_million_rows_have_a_few_dozen_slices(tmp_path: Path):
    sizes = sizes_of(job_of(tmp_path, "a"), 1_000_000, 10, 48.0)
    assert sum(sizes) == 10_000_000
    assert max(sizes) == 524_288
    assert len(sizes) < 60


def test_wide_rows_have_slices_of_48_mib(tmp_path: Path):
    sizes = sizes_of(job_of(tmp_path, "a"), 50_000, 4, 4_000.0)
    assert max(sizes) == 12_288  # 48 MiB, in whole batches
    assert sum(sizes) == 200_000


@pytest.mark.parametrize(("num_gpus", "rows"), [(0, 2_048), (1, 16_384)])
def test_a_batch_has_thousands_of_rows(num_gpus: int, rows: int, tmp_path: Path):
    write(tmp_path, a=[1.0], plan=["x"])
    plan = {"column": "plan", "categories": ["x", "y"]}
    job = job_of(tmp_path, "a", plan, resources={"num_gpus": num_gpus})
    assert plan_of(job).batch_size == rows


def test_lists_may_be_sequences_and_wide_rows_are_bounded_by_bytes(tmp_path: Path):
    lists = pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
    wide = {f"f{index}": np.zeros(1, np.float32) for index in range(4_000)}
    write(tmp_path, features=lists, **wide)
    assert plan_of(job_of(tmp_path, "features", "f0")).batch_size == 32
    assert plan_of(job_of(tmp_path, *wide)).batch_size == 1_024
    section = {"factory": "models:sums", "task": "regress", "targets": ["a", "b"], "batch_size": 7}
    assert plan_of(job_of(tmp_path, "features", model=section)).batch_size == 7


def test_the_length_of_vectors_is_measured_if_the_job_does_not_say_it(tmp_path: Path):
    write(tmp_path, a=[1.0, 2.0])

    def plan_with(**fields: int) -> Plan:
        model = {"factory": "models:sums", "task": "embed", **fields}
        return plan_of(job_of(tmp_path, "a", model=model))

    measured = plan_with()
    vector = pa.list_(pa.float32(), 2)
    assert [*measured.task_fields] == [pa.field("embedding", vector)]
    assert measured.fingerprint == plan_with(embedding_dim=2).fingerprint


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ({"task": "regress", "targets": ["price", "price"]}, "price"),
        ({"task": "raw", "outputs": [{"shape": [2]}, {"shape": [2]}]}, "output"),
    ],
)
def test_columns_of_one_name_are_refused_before_the_run(
    model: dict[str, Any], name: str, tmp_path: Path
):
    write(tmp_path, a=[1.0, 2.0])
    with pytest.raises(JobError, match=f"2 columns of the outputs are called '{name}'"):
        plan_of(job_of(tmp_path, "a", model={"factory": "models:sums", **model}))


T4 = hardware_facts.Card("T4", (7, 5), False, "580.1", "13.0", 9)
OPTIONS = RunOptions(allow_import=("models",))
GOLDEN = {"golden": {"uri": "/nowhere/golden.parquet"}}


def image_job(folder: Path, **sections: Any) -> Job:
    (folder / "in").mkdir()
    Image.new("RGB", (40, 40), (200, 10, 10)).save(folder / "in" / "a.png")
    model = {"factory": "models:colours", "labels": models.LABELS, **sections.pop("model", {})}
    source = {"uri": str(folder / "in"), "format": "images"}
    path = write_job(folder / "j.yaml", source, str(folder / "out"), model=model, **sections)
    return read_job(path, date=dt.date(2026, 11, 24))


def text_job(folder: Path, **model: Any) -> Job:
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "in").mkdir()
    pq.write_table(pa.table({"body": ["the red cat"]}), folder / "in" / "s.parquet")
    path = write_job(
        folder / "j.yaml",
        {"uri": str(folder / "in"), "format": "parquet", "text_column": "body"},
        str(folder / "out"),
        model={"factory": "models:mentions", "labels": models.LABELS, **model},
        text={"tokenizer": str(folder / "tokenizer.json"), "max_tokens": 16},
        transform=None,
    )
    return read_job(path, date=dt.date(2026, 11, 24))


def planned(job: Job) -> dict[str, Any]:
    """Plan without asking Ray, in a process of its own, what this machine has."""
    with without_ray():
        return plan(job, allow_import=OPTIONS.allow_import, tries=False)


def refusal_of_plan(job: Job) -> str:
    with pytest.raises(JobError) as caught:
        planned(job)
    return str(caught.value)


def refusal_of_run(job: Job) -> str:
    with pytest.raises(JobError) as caught:
        run_job(job, OPTIONS, Silent())
    return str(caught.value)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"precision": "fp16"}}, "'fp16': fp16 needs a GPU; on the CPU use fp32 or"),
        ({"model": {"runtime": "onnxruntime", "precision": "bf16"}}, "runs fp32, int8, not bf16"),
        ({"gates": GOLDEN}, "gates.golden.uri = /nowhere/golden.parquet"),
    ],
)
def test_plan_refuses_what_a_run_refuses_before_it_starts_ray(
    sections: dict[str, Any], words: str, tmp_path: Path
):
    job = image_job(tmp_path, **sections)
    message = refusal_of_plan(job)
    assert words in message
    assert "\n" not in message
    assert refusal_of_run(job) == message


def test_plan_refuses_texts_on_a_runtime_of_one_shape(tmp_path: Path):
    job = text_job(tmp_path, runtime="mnn")
    message = refusal_of_plan(job)
    if "not installed" not in message:
        assert "it runs batches of one shape; texts differ in length" in message
    assert refusal_of_run(job) == message


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"num_cpus": 4096}, "1 actors x 4096 CPUs do not fit"),
        pytest.param(
            *({"max_actors": 4096}, "4096 actors x 1 CPUs do not fit"), marks=pytest.mark.slow
        ),
    ],
)
def test_plan_refuses_more_than_this_machine_has(
    resources: dict[str, Any], words: str, tmp_path: Path
):
    job = image_job(tmp_path, resources=resources)
    message = refusal_of_plan(job)
    assert words in message
    # A run divides what its Ray has by the same function; see test_allocation.py.
    with without_ray(), pytest.raises(JobError) as of_run:
        allocate(job.resources, embedded_hardware(), cost="image")
    assert str(of_run.value) == message


def test_plan_reports_a_missing_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refusal_of_plan(image_job(tmp_path, resources={"num_gpus": 1}))
    assert re.fullmatch(r"resources.num_gpus = 1: the torch \S+ sees no CUDA device: .*", message)


def test_plan_reports_an_emulated_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = image_job(tmp_path, model={"precision": "bf16"})
    for has, reason in ({"avx2"}, "this CPU has no bf16 arithmetic"), ({"amx_bf16"}, None):
        monkeypatch.setattr(runtimes, "instruction_sets", lambda has=has: frozenset(has))
        slow = planned(job)["model"].get("slow")
        assert (slow is None) if reason is None else slow.startswith(reason)
    monkeypatch.setattr(hardware_facts, "_card", lambda: T4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert runtimes.emulated_reason("tf32", is_on_gpu=True).startswith("T4 has no TF32")


@pytest.mark.parametrize("runtime", ["eager", None])
def test_a_file_that_would_run_on_the_cpu_beside_an_idle_gpu_is_refused(
    runtime: str | None, tmp_path: Path
):
    file = onnx_files.save(onnx_files.image_model(models.SIZE_PX), tmp_path / "m.onnx")
    model = {"factory": None, "path": str(file), "runtime": runtime}
    job = image_job(tmp_path, model=model, resources={"num_gpus": 1})
    message = refusal_of_plan(job)
    assert (
        "runs an .onnx file on one CPU thread, and the GPU would be idle: take runtime" in message
    )
    assert "\n" not in message
    assert refusal_of_run(job) == message


@pytest.mark.parametrize("is_plain", [False, True])
def test_the_hardware_of_an_embedded_ray_is_that_of_the_machine(
    is_plain: bool, monkeypatch: pytest.MonkeyPatch
):
    """Without private names of Ray it is the system's count."""
    monkeypatch.setenv("PIPELINE_PLAIN_RAY", "1" if is_plain else "0")
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")
    hardware = embedded_hardware()
    assert hardware.cpus == multiprocessing.cpu_count()
    assert hardware.node_cpus == (hardware.cpus,)
    assert hardware.gpus >= 0
