"""A process of Ray sees the GPUs that Ray gave it: none in tasks, and the right one in an actor."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from pipeline.execution.tasks import _call
from pipeline.execution.visible_gpus import VISIBLE, mismatch, no_gpus, settle_gpus, without_gpus

FIRST = "8d1ba1a0-5c4a-7a4b-93d5-0f0a6cde0001"
OTHER = "1fe3b9c2-0000-7a4b-93d5-0f0a6cde0002"
PART = "MIG-5c89ba0a-3af2-5a1c-8ad1-4c1be1c1e8ab"
OLD_PART = "MIG-GPU-8d1ba1a0-5c4a-7a4b-93d5-0f0a6cde0001/1/0"


@pytest.mark.parametrize(
    ("given", "visible", "seen"),
    [
        (["0"], "0", [FIRST]),
        (["3"], "3", [OTHER]),
        (["0"], None, [FIRST]),  # a node of one card, and a Ray that sets nothing
        (["0"], "0", [""]),  # a torch that tells no UUID
        ([f"GPU-{FIRST}"], f"GPU-{FIRST}", [FIRST]),
        (["GPU-8D1BA1A0"], "GPU-8D1BA1A0", [f"GPU-{FIRST}"]),  # the beginning is enough
        ([PART], PART, [FIRST]),  # CUDA may tell the UUID of the whole card
        ([OLD_PART], OLD_PART, [FIRST]),
        ([], "0,1", [FIRST, OTHER]),  # not told by Ray
        (["0", "1"], "0,1", [FIRST, OTHER]),
    ],
)
def test_the_cards_that_ray_gave_pass(given: Sequence[str], visible: str | None, seen: list[str]):
    assert mismatch(given, visible, seen) == ""


@pytest.mark.parametrize(
    ("given", "visible", "seen", "words"),
    [
        # Slurm gives a step all cards, and Ray is told not to touch the variable.
        (["3"], "0,1,2,3", [FIRST, OTHER, FIRST, OTHER], "GPU 3, and torch sees 4 GPUs"),
        (["1"], None, [FIRST, OTHER], "GPU 1, and torch sees 2 GPUs"),
        (["3"], "0", [FIRST], "of its process is '0': another program has set it"),
        ([f"GPU-{OTHER}"], f"GPU-{OTHER}", [FIRST], f"torch computes on GPU-{FIRST}"),
        ([PART], "0", [FIRST], "of its process is '0'"),
        ([PART], f"{PART},{OLD_PART}", [FIRST, FIRST], "and torch sees 2 GPUs"),
    ],
)
def test_other_cards_are_told_in_one_line(
    given: Sequence[str], visible: str | None, seen: list[str], words: str
):
    told = mismatch(given, visible, seen)
    assert words in told
    assert "\n" not in told


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
