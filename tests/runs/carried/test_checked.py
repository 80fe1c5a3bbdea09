"""Carried rows that are predicted again: how the staged parts of them are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.model_cases import colours_state
from support.runs import earlier_partitions
from support.runs.published import run_here
from support.runs.retry_runs import make_partition, write_images

from pipeline.runs.carried import checked


@pytest.mark.parametrize(("task_bytes", "num_parts"), [(2**26, 64), (2**20, 1), (2**21, 2)])
def test_a_task_reads_some_small_parts_and_all_rows_are_compared(
    task_bytes: int, num_parts: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(checked, "_TASK_BYTES", task_bytes)
    read: list[int] = []

    def note(function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        if function is checked.read_each:
            read.extend(len(parts) for _, parts in calls)
        return run_here(function, calls)

    partition = make_partition(tmp_path, write_images, sink={"target_part_mib": 1.0})
    partition.weights = str(tmp_path / "weights.pt")
    torch.save(colours_state(), partition.weights)
    partition.run()
    monkeypatch.setattr(earlier_partitions, "run_here", note)
    partition.partition = "date=2026-11-25"
    manifest = partition.run()
    num_slices = -(-len(partition.computed) // 4)
    assert sum(read) == num_slices >= 4
    assert max(read) <= num_parts
    assert len(read) <= -(-num_slices // num_parts) + 1
    [gate] = [gate for gate in manifest.gates if gate["name"] == "carried"]
    assert gate["message"].startswith(f"{len(partition.computed)} of {len(partition.computed)} ")
