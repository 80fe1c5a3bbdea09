"""What the driver's tool says of the cards is judged; without the tool nothing is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.operations.checks.machine import _ask_smi, look_at_cards, look_at_gpus


def tool(folder: Path, *cards: str) -> str:
    path = folder / "nvidia-smi"
    path.write_text("#!/bin/sh\n" + "".join(f"echo '{card}'\n" for card in cards))
    path.chmod(0o755)
    return str(path)


def test_cards_that_are_fine_are_one_line(tmp_path: Path):
    command = tool(tmp_path, "NVIDIA L4, Default, 0, 23034", "NVIDIA T4, Default, [N/A], 15360")
    (found,) = look_at_cards(lambda: _ask_smi(command))
    assert (found.check, found.status) == ("gpu state", "ok")
    assert "23034 MiB, 15360 MiB" in found.found


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ("NVIDIA L4, Exclusive_Process, 0, 23034", "GPU 1 (NVIDIA L4): compute mode Exclusive"),
        ("NVIDIA L4, Default, 3, 23034", "GPU 1 (NVIDIA L4): 3 memory errors"),
    ],
)
def test_a_card_that_will_fail_is_named(card: str, words: str, tmp_path: Path):
    command = tool(tmp_path, "NVIDIA L4, Default, 0, 23034", card)
    (found,) = look_at_cards(lambda: _ask_smi(command))
    assert found.status == "warn"
    assert words in found.found
    assert "GPU 0" not in found.found


def test_without_the_tool_nothing_is_said(tmp_path: Path):
    assert [*look_at_cards(lambda: _ask_smi(str(tmp_path / "absent")))] == []
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert [*look_at_cards(lambda: _ask_smi(str(tmp_path / "nvidia-smi")))] == []


def test_a_job_that_wants_a_gpu_is_warned_of_its_absence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (found,) = look_at_gpus(is_wanted=True)
    assert found.status == "warn"
    assert f"torch {torch.__version__} sees none: it is built for " in found.found
