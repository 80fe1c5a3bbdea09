"""What only a card can show: lost contexts, overlapping batches, waiting, and lack of memory.

`make gpu-hour` runs these beside the other tests with the marker `gpu`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.runs.cli import pipeline, write_job
from support.runs.predicting import images, is_predicted, predict, predictor, rows_of

from pipeline.inference.devices.device_errors import OutOfDeviceMemory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
NUM_ROUNDS, SIZE_PX = 50, 224
MAX_SHARE = 0.3
"""Of a core, for launching and gathering; a wait that spins takes all of one."""


@pytest.mark.ray
def test_a_row_that_loses_the_context_costs_itself(tmp_path: Path):
    """It is in the middle one of three slices."""
    first = np.ones(3 * 64, np.float32)
    first[len(first) // 2] = 99
    (tmp_path / "in").mkdir()
    columns = {"x": first, "y": np.ones(len(first), np.float32)}
    pq.write_table(pa.table(columns), tmp_path / "in" / "0.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": list(columns)}
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        model={"factory": "gpu_models:lost_at_99", "task": "regress"},
        transform=None,
        resources={"num_gpus": 1},
        run={"slice_rows": 64},
        gates={"constant": {"mode": "off"}},
    )
    env = {"PIPELINE_ALLOW_IMPORT": "gpu_models"}
    done = pipeline("run", job, "--date", "2026-11-24", "--json", "--quiet", env=env)
    assert sum(done.json["reasons"].values()) == 1, done.stderr


@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_overlapping_batches_are_those_of_the_cpu_every_time(runtime: str):
    """From a thread of the caller's, as actors call it."""
    rows, factory = rows_of(images(500, seed=5)), "support.runs.predicting:convolved"
    expected = scores(predictor(factory, 8, top_k=5), rows)
    model = predictor(factory, 8, num_gpus=1, top_k=5, runtime=runtime)
    with ThreadPoolExecutor(1) as other:
        for _ in range(NUM_ROUNDS):
            mine = other.submit(scores, model, rows).result()
            assert mine == pytest.approx(expected, abs=1e-4)


def scores(model: Any, rows: pa.Table) -> list[float]:
    return model.predict(rows, {}).column("score").to_pylist()


def test_waiting_for_the_card_takes_no_core():
    model, rows = large(128, precision="bf16"), noise(512)
    model.predict(rows, {})
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for _ in range(NUM_ROUNDS):
        model.predict(rows, {})
    cpu_s = time.process_time() - began_cpu_s
    assert cpu_s / (time.perf_counter() - began_s) < MAX_SHARE


def large(batch_size: int, **options: Any) -> Any:
    sizes = {"size_px": SIZE_PX, "resize_px": SIZE_PX}
    return predictor("gpu_models:vit", batch_size, num_gpus=1, transform=sizes, **options)


def noise(num_rows: int) -> pa.Table:
    shape = (num_rows, SIZE_PX, SIZE_PX, 3)
    return rows_of(np.random.default_rng(0).integers(0, 255, shape, np.uint8))


@pytest.fixture(params=[0.0, 0.9], ids=["alone", "beside another tenant"])
def held(request: pytest.FixtureRequest) -> Iterator[None]:
    """A share of the card's free memory is another's."""
    free_bytes, _ = torch.cuda.mem_get_info()
    taken = torch.empty(int(request.param * free_bytes), dtype=torch.uint8, device="cuda")
    yield
    del taken
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("held")
@pytest.mark.parametrize("runtime", ["eager", "compile"])
def test_a_batch_that_is_too_large_costs_no_row(runtime: str):
    """Compiled batches have one size, and cannot be made smaller: the model is refused."""
    try:
        predicted, _ = predict(large(4096, runtime=runtime), noise(4096))
    except OutOfDeviceMemory:
        assert runtime == "compile"
    else:
        assert all(map(is_predicted, predicted))


def test_a_model_that_is_larger_than_the_card_is_named():
    size_gib = 1.2 * torch.cuda.mem_get_info()[1] / 2**30
    with pytest.raises(OutOfDeviceMemory, match="GiB"):
        predictor("gpu_models:of_gib", num_gpus=1, args={"size_gib": size_gib})
