"""Facts about the hardware of this process: processor, GPU and driver, and why there is no GPU."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path
from typing import NamedTuple

from pipeline.core.figures import Counters, SliceFigures

_TELLING = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm")
"""Prefixes of the instruction sets without which a model is much slower."""

_CPUINFO = Path("/proc/cpuinfo")
_DRIVER = Path("/proc/driver/nvidia/version")
_TF32, _BF16 = (8, 0), "bf16"


class Card(NamedTuple):
    """The GPU of this process."""

    name: str
    capability: tuple[int, int]
    has_bf16: bool
    """Whether it computes in bf16; other cards emulate it in fp32."""
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

    The driver calls it, too, so it makes no CUDA context, which would take memory of the card.
    """
    import torch

    return slow_precision_reason(precision, _card()) if torch.cuda.is_available() else ""


def advice(precision: str, card: Card) -> str:
    """Return advice for a faster run on a card, or ''."""
    if slow := slow_precision_reason(precision, card):
        return f"model.precision {precision}: {slow}"
    if precision == "fp32" and card.capability >= _TF32:
        return (
            f"fp32 uses a small part of what {card.name} can do: model.precision tf32 or bf16 is "
            "several times faster, and the gates check that predictions still agree"
        )
    return ""


def count_device(counters: Counters, num_gpus: float, precision: str, num_rows: int) -> None:
    """Count rows for the device of this process, with advice for a faster run."""
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
    """Return why torch sees no GPU here, and the remedy.

    Args:
        built_for: `torch.version.cuda`.
        driver: The version of the NVIDIA driver; None if there is none.
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


def instruction_sets(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the instruction sets by the kernel's names (`avx2`, `asimd`); empty if unknown."""
    return _flags(_facts(cpuinfo))


def describe_processor(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's model name and its instructions for arithmetic, sorted.

    Clouds give processors of different years the same name; the instructions tell them apart.
    """
    facts = _facts(cpuinfo)
    telling = sorted(flag for flag in _flags(facts) if flag.startswith(_TELLING))
    name = facts.get("model name") or platform.processor()
    return " ".join([name, *telling]).strip()


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return the processor's model name, or else the type of the machine."""
    return _facts(cpuinfo).get("model name") or platform.processor() or platform.machine()


def _facts(cpuinfo: Path) -> dict[str, str]:
    """Return the kernel's facts about the first processor; empty if there are none."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def _flags(facts: dict[str, str]) -> frozenset[str]:
    return frozenset((facts.get("flags") or facts.get("Features", "")).split())  # x86, ARM
