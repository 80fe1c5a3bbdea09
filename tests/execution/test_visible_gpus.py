"""A process of Ray sees the GPUs that Ray gave it: none in tasks, its own in an actor."""

from __future__ import annotations

import os

import pytest

from pipeline.execution.environment import (
    VISIBLE,
    no_gpus,
    settle_gpus,
    too_many_reason,
    without_gpus,
)
from pipeline.execution.tasks import _call


@pytest.mark.parametrize(
    ("given", "num_seen", "words"),
    [
        (["0"], 1, ""),
        (["0", "1"], 2, ""),
        ([], 2, ""),  # not told by Ray
        # Slurm gives a step all cards, and Ray is told not to touch the variable.
        (["3"], 4, "GPU 3, and torch sees 4 GPUs"),
        (["MIG-5c89ba0a"], 2, "GPU MIG-5c89ba0a, and torch sees 2 GPUs"),
    ],
)
def test_an_actor_that_sees_more_gpus_than_its_own_is_refused(
    given: list[str], num_seen: int, words: str
):
    reason = too_many_reason(given, num_seen)
    assert words in reason
    assert bool(reason) == bool(words)


@pytest.mark.parametrize("before", [None, "0,1", "GPU-8d1b"])
def test_a_task_sees_no_gpu_and_leaves_the_process_as_it_was(
    before: str | None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv(VISIBLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VISIBLE, before)
    stage = without_gpus(lambda _: os.environ[VISIBLE])
    assert stage(1) == ""
    assert os.environ.get(VISIBLE) == before
    with pytest.raises(RuntimeError), no_gpus():
        raise RuntimeError
    assert os.environ.get(VISIBLE) == before


def visible() -> str | None:
    return os.environ.get(VISIBLE)


def test_tasks_of_plain_functions_and_the_index_see_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VISIBLE, "0,1")
    assert _call(visible, ()) == ""
    assert visible() == "0,1"


def test_an_actor_on_the_cpu_sees_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(VISIBLE, "0")
    settle_gpus(0.0)
    assert os.environ[VISIBLE] == ""
