"""The protocol of runtimes: their precisions per device, how they open a model, and limits."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import pipeline.inference.runtimes.int8 as int8
from pipeline.core.errors import JobError
from pipeline.inference.hardware_facts import instruction_sets

if TYPE_CHECKING:
    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import InferenceModule, Tensors
    from pipeline.models.onnx_module import OnnxModule

Device = Literal["cpu", "gpu"]
CPU: tuple[Device, ...] = ("cpu",)
GPU: tuple[Device, ...] = ("gpu",)
BOTH: tuple[Device, ...] = ("cpu", "gpu")
EXACT, TF32 = "ieee", "tf32"
"""How float32 is multiplied, by torch's names."""
_BF16_FLAGS = frozenset(["avx512_bf16", "amx_bf16", "bf16"])


@dataclass(frozen=True)
class Runner:
    """A model that is ready to run."""

    run: Callable[[Tensors], Any]
    """Tensors of a batch by name, each (B, ...) on the device -> the outputs of the module."""
    is_static: bool
    """Whether B is fixed: the caller pads the last batch, and drops the outputs of the padding."""
    module: InferenceModule | None = None
    """The module, if torch runs it directly."""


class Runtime(Protocol):
    """A library that runs models. Subclass it; the defaults suit libraries that export models."""

    name: str
    precisions: Mapping[str, tuple[Device, ...]]
    """Precision -> its devices, in the order in which `auto` tries precisions."""
    trial_order: int
    """`auto` tries runtimes in ascending order; those that start fast and are often best first."""
    extra: str = ""
    """The extra that installs its packages; '' if there are none."""
    packages: tuple[str, ...] = ()
    """Modules that it imports; their versions are part of the node cache's key."""
    is_static: bool = True
    """Whether every batch must have the same number of rows."""
    takes_varying: bool = True
    """Whether it runs batches of varying shapes, as those of texts."""
    tries_varying: tuple[Device, ...] = BOTH
    """Devices on which `auto` tries it for such batches."""
    autotunes: tuple[Device, ...] = ()
    """Devices on which opening it for batches of one shape tries kernels for minutes; `pipeline
    tune` does that, a run does not."""
    exports: bool = True
    """Whether it runs an exported form of the model, which one actor writes to the node cache and
    the others load without the module."""
    converts_types: bool = False
    """Whether it converts a float32 module to lower precisions itself."""
    file_precisions: tuple[str, ...] = ()
    """Precisions in which it runs an .onnx file directly; () if it needs a torch module."""
    file_devices: tuple[Device, ...] = BOTH
    """Devices on which it runs such a file."""

    def missing_reason(self, precision: str, device: Device) -> str:
        """Return why it cannot run one of its precisions on this machine's device, or ''."""
        return ""

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        """Open a model; errors of the library are raised unchanged.

        Args:
            exporter: Provides the module, or an exported file of it.
            precision: One of `precisions`.
            calibrated: For int8, bytes of the ONNX model that runs instead of the module.
        """
        ...

    def open_file(
        self, file: OnnxModule, exporter: Exporter, precision: str, num_threads: int
    ) -> bool:
        """Open the .onnx file of a module with `file.open`; by default as the reference does.

        Args:
            file: The module; torch normalises its inputs before.
            exporter: Provides an example batch.
            precision: One of `file_precisions`.

        Returns:
            Whether B is fixed, as `Runner.is_static`.
        """
        file.open()
        return False


def math_of(precision: str) -> str:
    """Return how a model of this precision multiplies float32: `ieee` or `tf32`."""
    return TF32 if precision == TF32 else EXACT


def missing_reason(runtime: Runtime, precision: str, *, is_on_gpu: bool) -> str:
    """Return why a runtime cannot be used here in a precision, or ''."""
    absent = [name for name in runtime.packages if not importlib.util.find_spec(name)]
    if absent:
        return (
            f"{absent[0]} is not installed: pip install 'batch-inference-pipeline[{runtime.extra}]'"
        )
    if precision == int8.INT8 and (reason := int8.missing_reason()):
        return reason
    device: Device = "gpu" if is_on_gpu else "cpu"
    unfit = unfit_reason(runtime, precision, is_on_gpu=is_on_gpu)
    return unfit or runtime.missing_reason(precision, device)


def unfit_reason(runtime: Runtime, precision: str, *, is_on_gpu: bool) -> str:
    """Return why a runtime cannot run a precision on such a device on any machine, or ''."""
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
    return ""


def refuse(runtime: Runtime, precision: str, reason: str) -> None:
    """Refuse the job's runtime and precision, if there is a reason.

    Raises:
        JobError: The reason is not ''.
    """
    if reason:
        raise JobError(f"model.runtime {runtime.name!r}, model.precision {precision!r}: {reason}")


def shapes_reason(runtime: Runtime, *, is_varying: bool) -> str:
    """Return why a runtime cannot run batches of varying shapes, or ''."""
    if runtime.takes_varying or not is_varying:
        return ""
    return (
        "it runs batches of one shape; texts differ in length, and images without "
        "transform.size_px in size; choose another runtime"
    )


def task_reason(runtime: Runtime, task: str, runtimes: Sequence[str] | None) -> str:
    """Return why a runtime may not run the models of a task, whose `runtimes` these are, or ''."""
    if runtimes is None or runtime.name in runtimes:
        return ""
    return f"task {task!r} is run by {', '.join(runtimes)} only"


def file_reason(runtime: Runtime, precision: str) -> str:
    """Return why a runtime cannot run an .onnx file directly in a precision, or ''."""
    if precision in runtime.file_precisions:
        return ""
    able = ", ".join(runtime.file_precisions) or "none: it needs a torch module"
    return (
        f"the model is an .onnx file, which this runtime runs directly in these precisions: {able}"
    )


def idle_gpu_reason(runtime: Runtime) -> str:
    """Return why a runtime may not run an .onnx file if the job asks for a GPU, or ''."""
    if "gpu" in runtime.file_devices:
        return ""
    return (
        "it runs an .onnx file on one CPU thread, and the GPU would be idle: take runtime "
        "onnxruntime, or resources.num_gpus 0"
    )


def emulated_reason(precision: str, *, is_on_gpu: bool) -> str:
    """Return why a precision is not faster here, or ''."""
    if is_on_gpu:
        from pipeline.inference.hardware_facts import slow_here_reason

        return slow_here_reason(precision)
    if precision != "bf16":
        return ""
    flags = instruction_sets()
    if not flags or flags & _BF16_FLAGS:
        return ""
    return "this CPU has no bf16 arithmetic, it would be emulated"
