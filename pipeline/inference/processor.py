"""Name and instruction sets of this machine's processor."""

from __future__ import annotations

import platform
from pathlib import Path

_TELLING = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm")
"""Beginnings of the names of those instructions whose lack makes a model much slower."""


_CPUINFO = Path("/proc/cpuinfo")


def instruction_sets(cpuinfo: Path = _CPUINFO) -> frozenset[str]:
    """Return the instruction sets by the kernel's names (`avx2`, `asimd`); empty if unknown."""
    return _flags(_facts(cpuinfo))


def describe_processor(cpuinfo: Path = _CPUINFO) -> str:
    """Return its model name and its instructions for arithmetic, in a fixed order.

    Clouds give processors of different years one name; by the instructions they differ.
    """
    facts = _facts(cpuinfo)
    telling = sorted(flag for flag in _flags(facts) if flag.startswith(_TELLING))
    name = facts.get("model name") or platform.processor()
    return " ".join([name, *telling]).strip()


def processor_name(cpuinfo: Path = _CPUINFO) -> str:
    """Return what its maker calls it, or the kind of machine."""
    return _facts(cpuinfo).get("model name") or platform.processor() or platform.machine()


def _facts(cpuinfo: Path) -> dict[str, str]:
    """Return what the kernel says of the first processor; empty if it does not."""
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
