"""What every runtime is: where it runs which precision, and how it opens a model."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pipeline.inference.runtimes.int8 as int8

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors

Device = Literal["cpu", "gpu"]
CPU: tuple[Device, ...] = ("cpu",)
GPU: tuple[Device, ...] = ("gpu",)
BOTH: tuple[Device, ...] = ("cpu", "gpu")


@dataclass(frozen=True)
class Runner:
    """One model, ready to run."""

    run: Callable[[Tensors], Any]
    """A batch by the names of its tensors, each (B, ...) -> the outputs of the module."""
    is_static: bool
    """It takes only whole batches: pad the last one and drop what comes back for the padding."""


class Runtime(Protocol):
    """One way to run a model. Subclass it; the defaults suit a library that takes exports."""

    name: str
    precisions: Mapping[str, tuple[Device, ...]]
    """Precision -> the devices on which it runs in it, in the order to try them."""
    trial_order: int
    """`auto` tries runtimes in this order: soon ready and often the best first."""
    extra: str = ""
    """The extra that installs its packages; empty if there are none."""
    packages: tuple[str, ...] = ()
    """Modules that it imports, named as their distributions; their versions are in the key of what
    the node keeps."""
    is_static: bool = True
    """It takes whole batches only."""
    exports: bool = True
    """It needs no module on an actor if the node has kept what it once made of it."""
    keeps: bool = True
    """What it makes of a model stays on the node: the first actor pays, the others load."""
    converts_types: bool = False
    """It makes a lower precision of a float32 module by itself."""

    def missing_reason(self, precision: str, device: Device) -> str:
        """Say why it cannot be used here in a precision that it has for a device, or ''."""
        return ""

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        """Make a model ready to run; whatever goes wrong is raised.

        Args:
            exporter: Gives the module, or a file of it.
            precision: One of `precisions`.
            num_threads: CPU threads.
            calibrated: Precision int8: the ONNX model that runs instead of the module.
        """
        ...


def missing_reason(runtime: Runtime, precision: str, *, is_on_gpu: bool) -> str:
    """Say why a runtime cannot be used here in a precision, or ''."""
    absent = [name for name in runtime.packages if not importlib.util.find_spec(name)]
    if absent:
        return f"{absent[0]} is not installed: the extra `{runtime.extra}` brings it"
    if precision == int8.INT8 and (reason := int8.missing_reason()):
        return reason
    if precision not in runtime.precisions:
        return f"{runtime.name} runs {', '.join(runtime.precisions)}, not {precision}"
    device: Device = "gpu" if is_on_gpu else "cpu"
    there = [name for name, devices in runtime.precisions.items() if device in devices]
    if not there:
        return f"{runtime.name} is used on the {'CPU' if is_on_gpu else 'GPU'} only"
    if precision not in there:
        if is_on_gpu:
            return f"{precision} is used on the CPU only"
        return f"{precision} needs a GPU; on the CPU use {' or '.join(there)}"
    return runtime.missing_reason(precision, device)
