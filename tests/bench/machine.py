"""Describe the machine of a measurement: processor, cores, memory, versions of packages.

To be imported before what tests share, and the tests' models: it says where they lie.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

BENCH = Path(__file__).parent
TESTS, ROOT = BENCH.parent, BENCH.parent.parent
sys.path[:0] = [str(TESTS / "support/toys"), str(TESTS), str(ROOT)]
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")
PACKAGES = (
    *("ray", "torch", "torchvision", "onnxruntime", "openvino", "MNN", "pyarrow", "pillow"),
    *("transformers", "sentence-transformers", "daft", "pyspark"),
)


def machine() -> dict[str, Any]:
    """Return JSON-ready facts; a package that is not installed is left out."""
    fields = _cpu_fields()
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in PACKAGES if (version := _version(name))},
    }


def today() -> str:
    return dt.datetime.now(dt.UTC).date().isoformat()


def tell(document: dict[str, Any], out: Path | None) -> None:
    """Print a document as one JSON line, and write it to a file if one is named."""
    line = json.dumps(document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n")
    print(line)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is no such file."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in pairs}
