"""Test the reasons for a missing GPU and for slow precisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inference.hardware_facts import (
    Card,
    absence_reason,
    advice,
    driver_version,
    slow_precision_reason,
)

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n"
OPEN = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"
    "GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n"
)
T4 = Card("Tesla T4", (7, 5), False, "550.54.15", "12.8", 91002)
L4 = Card("NVIDIA L4", (8, 9), True, "580.65.06", "13.0", 91300)


def driver(folder: Path, text: str) -> Path:
    (folder / "version").write_text(text)
    return folder / "version"


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "550.54.15"), (OPEN, "580.65.06")])
def test_the_driver_tells_its_version(tmp_path: Path, text: str, version: str):
    assert driver_version(driver(tmp_path, text)) == version
    assert driver_version(tmp_path / "absent") is None


def test_what_keeps_torch_from_a_gpu_is_said_in_one_line():
    assert "built for the CPU; install a CUDA build" in absence_reason(None, "550.54.15")
    assert "built for CUDA 13.0, and no NVIDIA driver is here" in absence_reason("13.0", None)
    assert "CUDA 13.0, and driver 550.54.15 is here" in absence_reason("13.0", "550.54.15")


def test_precisions_that_a_card_lacks_are_named_and_others_are_not():
    assert "no bf16 arithmetic" in slow_precision_reason("bf16", T4)
    assert "no TF32" in slow_precision_reason("tf32", T4)
    assert [slow_precision_reason(precision, T4) for precision in ("fp32", "fp16")] == ["", ""]
    assert not any(
        slow_precision_reason(precision, L4) for precision in ("fp32", "tf32", "bf16", "fp16")
    )


def test_exact_fp32_on_a_card_that_can_do_more_gets_one_line_of_advice():
    assert "model.precision tf32 or bf16" in advice("fp32", L4)
    assert "Tesla T4 has no bf16" in advice("bf16", T4)
    assert [advice("fp32", T4), advice("tf32", L4), advice("bf16", L4)] == ["", "", ""]


def test_a_card_is_named_with_all_that_computes_on_it():
    assert str(L4) == "NVIDIA L4, driver 580.65.06, CUDA 13.0, cuDNN 91300"
    assert str(L4._replace(driver=None, cudnn=None)) == "NVIDIA L4, CUDA 13.0"
