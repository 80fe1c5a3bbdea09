"""What the processor of this machine is called, and which instructions it has."""

from __future__ import annotations

import platform
from pathlib import Path

_TELLING = ("avx", "amx", "fma", "asimd", "sve", "bf16", "i8mm")
"""Beginnings of the names of those instructions whose lack makes a model much slower."""


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return its model name and its instructions for arithmetic, in a fixed order.

    Clouds give processors of different years one name; by the instructions they differ.
    """
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return platform.processor()
    facts: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = (facts.get("flags") or facts.get("Features", "")).split()  # x86, ARM
    telling = sorted(flag for flag in flags if flag.startswith(_TELLING))
    name = facts.get("model name") or platform.processor()
    return " ".join([name, *telling]).strip()
