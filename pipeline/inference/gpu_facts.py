"""What is known of the GPU of this process, of its driver, and why there may be none."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.core.figures import Counters, SliceFigures
from pipeline.inference.processor import processor_name

_DRIVER = Path("/proc/driver/nvidia/version")
_TF32, _BF16 = (8, 0), "bf16"


class Card(NamedTuple):
    """The card on which this process computes."""

    name: str
    capability: tuple[int, int]
    has_bf16: bool
    """It computes in bf16; others emulate it in fp32."""
    driver: str | None
    cuda: str | None
    cudnn: int | None

    def __str__(self) -> str:
        facts = {"driver": self.driver, "CUDA": self.cuda, "cuDNN": self.cudnn}
        return ", ".join([self.name, *(f"{name} {fact}" for name, fact in facts.items() if fact)])


def card_here() -> Card:
    """Return the card of this process, which must have one."""
    from pipeline.inference.devices.accelerator import the_gpu

    return the_gpu().call(_card)


def _card() -> Card:
    import torch

    return Card(
        torch.cuda.get_device_name(),
        torch.cuda.get_device_capability(),
        torch.cuda.is_bf16_supported(including_emulation=False),
        driver_version(),
        torch.version.cuda,
        torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    )


def slow_precision_reason(precision: str, card: Card) -> str:
    """Return why a precision is not faster on a card, or ''."""
    if precision == _BF16 and not card.has_bf16:
        return f"{card.name} has no bf16 arithmetic, it would be emulated; fp16 is fast there"
    if precision == "tf32" and card.capability < _TF32:
        return f"{card.name} has no TF32, it would compute in fp32"
    return ""


def slow_here_reason(precision: str) -> str:
    """Return why a precision is not faster on the card of this process, or ''.

    The driver asks, too: what is asked needs no context, which would take memory of the card.
    """
    import torch

    return slow_precision_reason(precision, _card()) if torch.cuda.is_available() else ""


def advice(precision: str, card: Card) -> str:
    """Return what would make a run on a card faster, or ''."""
    if slow := slow_precision_reason(precision, card):
        return f"model.precision {precision}: {slow}"
    if precision == "fp32" and card.capability >= _TF32:
        return (
            f"fp32 takes a small part of what {card.name} can do: model.precision tf32 or bf16 is "
            "several times faster, and the gates tell whether predictions still agree"
        )
    return ""


def count_device(counters: Counters, num_gpus: float, precision: str, num_rows: int) -> None:
    """Count rows for the device of this process, and say what it could do faster."""
    device, line = _device(bool(num_gpus), precision)
    SliceFigures(devices={device: num_rows}, advice={line: 0} if line else {}).add_to(counters)


@functools.cache
def _device(is_on_gpu: bool, precision: str) -> tuple[str, str]:
    if not is_on_gpu:
        return processor_name(), ""
    card = card_here()
    return str(card), advice(precision, card)


def driver_version(file: Path = _DRIVER) -> str | None:
    """Return the version of the NVIDIA driver of this machine; None if there is none."""
    try:
        match = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", file.read_text())
    except OSError:
        return None
    return match[1] if match else None


def absence_reason(built_for: str | None, driver: str | None) -> str:
    """Return why torch sees no GPU here, and what would be right.

    Args:
        built_for: `torch.version.cuda`.
        driver: The version of the NVIDIA driver; None: there is none.
    """
    if built_for is None:
        return "it is built for the CPU; install a CUDA build"
    here = f"driver {driver} is here" if driver else "no NVIDIA driver is here"
    return (
        f"it is built for CUDA {built_for}, and {here}; install a driver for this CUDA, and give "
        "this process or container a device"
    )


def absence_here() -> str:
    """Return why torch sees no GPU in this process."""
    import torch

    return absence_reason(torch.version.cuda, driver_version())
