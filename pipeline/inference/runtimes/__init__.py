"""Runtimes, the libraries that run models: one per file, and the registry of all of them.

Begin with `runtime.py`, the protocol, and `make_runner.py`, which opens a model. A new runtime is a
file with a class like `eager.Eager`, a line here, and a row in
tests/inference/runtimes/test_runtime_conformance.py. Other code reads the runtime's properties,
never its name. Importing a runtime imports neither torch nor the runtime's library.
"""

from __future__ import annotations

from pipeline.core.node_cache import versions_of
from pipeline.core.registry import RUNTIMES, get
from pipeline.inference.runtimes.runtime import Runtime

REGISTRY = {
    "eager": "pipeline.inference.runtimes.eager:RUNTIME",
    "compile": "pipeline.inference.runtimes.compile:RUNTIME",
    "compile-quick": "pipeline.inference.runtimes.compile:QUICK",
    "onnxruntime": "pipeline.inference.runtimes.onnx_runtime:RUNTIME",
    "openvino": "pipeline.inference.runtimes.open_vino:RUNTIME",
    "mnn": "pipeline.inference.runtimes.mnn:RUNTIME",
}


def runtime_of(name: str) -> Runtime:
    """Return a runtime.

    Raises:
        JobError: The name is unknown.
    """
    runtime: Runtime = get(RUNTIMES, name)
    return runtime


def all_runtimes() -> list[Runtime]:
    """Return every runtime, in the order in which `auto` tries them."""
    return sorted(map(runtime_of, REGISTRY), key=lambda runtime: runtime.trial_order)


def runtime_versions() -> dict[str, str]:
    """Return package -> version of the installed packages of all runtimes."""
    packages = [package for runtime in all_runtimes() for package in runtime.packages]
    return versions_of(packages)
