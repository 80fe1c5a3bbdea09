"""Runtime `onnxruntime`: float32 on CPU and GPU, int8 on the CPU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.errors import JobError
from pipeline.inference.runtimes.int8 import INT8
from pipeline.inference.runtimes.runtime import BOTH, CPU, Device, Runner, Runtime
from pipeline.models.directories.onnx.graph import ONNX_LOG_LEVEL

if TYPE_CHECKING:
    import torch

    from pipeline.inference.runtimes.export import Exporter
    from pipeline.inference.runtimes.inference_module import Tensors
    from pipeline.models.onnx_module import OnnxModule

_CUDA = "CUDAExecutionProvider"
_NUMPY_NAMES = {
    "tensor(float)": "<f4",
    "tensor(double)": "<f8",
    "tensor(float16)": "<f2",
    "tensor(bool)": "|b1",
    "tensor(uint8)": "|u1",
    "tensor(int8)": "|i1",
    "tensor(int32)": "<i4",
    "tensor(int64)": "<i8",
}


class OnnxRuntime(Runtime):
    """An ONNX file of the module, or the calibrated one."""

    name = "onnxruntime"
    extra = "onnxruntime"
    packages = ("onnxruntime", "onnx", "onnxscript")
    precisions = {"fp32": BOTH, INT8: CPU}  # noqa: RUF012
    trial_order = 20
    file_precisions = ("fp32",)

    def missing_reason(self, precision: str, device: Device) -> str:
        if device == "cpu":
            return ""
        import onnxruntime

        if _CUDA in onnxruntime.get_available_providers():
            return ""  # if CUDA's libraries are missing, opening a session says so
        return "this onnxruntime has no CUDA provider: install onnxruntime-gpu"

    def open(
        self, exporter: Exporter, precision: str, num_threads: int, calibrated: bytes | None
    ) -> Runner:
        import torch

        from pipeline.inference import output_tree as pytree

        structure = exporter.structure()
        model = exporter.onnx() if calibrated is None else calibrated
        gpu = _Card() if exporter.is_on_gpu else None
        session = _session(model, num_threads, gpu)
        names = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        if gpu is not None:
            on_gpu = bound(session, outputs, gpu.device, gpu.stream)

        def run(batch: Tensors) -> Any:
            fed = dict(zip(names, batch.values(), strict=True))
            if gpu is not None:
                return pytree.tree_unflatten(on_gpu(fed), structure)
            arrays = session.run(None, {name: tensor.numpy() for name, tensor in fed.items()})
            return pytree.tree_unflatten([torch.from_numpy(array) for array in arrays], structure)

        return Runner(run, is_static=not exporter.is_varying)

    def open_file(
        self, file: OnnxModule, exporter: Exporter, precision: str, num_threads: int
    ) -> bool:
        gpu = _Card() if exporter.is_on_gpu else None
        session = _session(file.source(), num_threads, gpu)
        if gpu is None or file.has_columns:
            file.open(lambda feeds: session.run(list(file.output_names), feeds))
        else:
            file.open_on_device(bound(session, file.output_names, gpu.device, gpu.stream))
        return False


class _Card:
    """The card of this process, as a session is opened on it."""

    def __init__(self) -> None:
        import torch

        self.device = torch.device("cuda", torch.cuda.current_device())
        # The default stream is 0, for which a session makes a stream of its own.
        self.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        # torch >= 2.10 knows this process's share of the card.
        get_share = getattr(torch.cuda, "get_per_process_memory_fraction", lambda _: 1.0)
        total_bytes = torch.cuda.get_device_properties(self.device).total_memory
        self.options = cuda_options(
            self.device.index, self.stream.cuda_stream, get_share(self.device), total_bytes
        )


def cuda_options(device: int, stream: int, share: float, total_bytes: int) -> dict[str, str]:
    """Return the options of the CUDA provider: exact fp32, torch's order, a share of the card."""
    options = {"device_id": str(device), "user_compute_stream": str(stream), "use_tf32": "0"}
    if share < 1:
        options["gpu_mem_limit"] = str(int(share * total_bytes))
        # By default the reserved memory doubles each time.
        options["arena_extend_strategy"] = "kSameAsRequested"
    return options


def require_on_gpu(session: Any) -> None:
    """Refuse a session that fell back to the CPU because its CUDA provider failed.

    Raises:
        JobError: It runs on the CPU.
    """
    opened: list[str] = session.get_providers()
    if opened[:1] != [_CUDA]:
        import torch

        cuda = f"CUDA {torch.version.cuda}, as torch has it" if torch.version.cuda else "CUDA"
        raise JobError(
            f"model.runtime 'onnxruntime': its CUDA provider could not be opened, and {opened[0]} "
            "would run the model while the GPU is idle: install an onnxruntime-gpu for "
            f"{cuda}, or take runtime eager or compile"
        )


def _session(model: Path | str | bytes, num_threads: int, gpu: _Card | None) -> Any:
    """Return a session with all optimisations of the graph, which are the default."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = ONNX_LOG_LEVEL
    # Threads that spin while waiting would take the cores of the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, Mapping[str, str]]] = ["CPUExecutionProvider"]
    if gpu is not None:
        _load_libraries(onnxruntime)
        providers.insert(0, (_CUDA, gpu.options))
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model), options, providers=providers
    )
    if gpu is not None:
        require_on_gpu(session)
        session.disable_fallback()  # to the CPU, after an error in a batch
    return session


def _load_libraries(onnxruntime: Any) -> None:
    """Load CUDA's libraries: those of torch, or those of packages beside it."""
    import torch  # noqa: F401  # brings its own

    load = getattr(onnxruntime, "preload_dlls", None)  # >= 1.21
    if load is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints the libraries it does not find
            load()


class _Held:
    """Memory of an OrtValue, described by the array protocols."""

    def __init__(self, value: Any, device: torch.device) -> None:
        described = {
            "shape": tuple(value.shape()),
            "typestr": _NUMPY_NAMES[value.data_type()],
            "data": (value.data_ptr(), False),
            "version": 3,
        }
        name = "__cuda_array_interface__" if device.type == "cuda" else "__array_interface__"
        setattr(self, name, described)


def bound(
    session: Any, outputs: Sequence[str], device: torch.device, stream: Any = None
) -> Callable[[Tensors], list[torch.Tensor]]:
    """Return a function: tensors by input name -> the outputs, on the same device.

    No batch goes through the host.

    Args:
        session: An `onnxruntime.InferenceSession`.
        outputs: The names of the outputs to return, in that order.
        device: Where the tensors of a batch are, and where the session runs.
        stream: The CUDA stream of the session (`user_compute_stream`). It waits for the work of the
            current stream, which then waits for it.
    """
    import onnxruntime
    import torch

    options = onnxruntime.RunOptions()
    if stream is not None:  # the streams wait for each other; the host need not wait for them
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    place = (device.type, device.index or 0)

    def run(batch: Tensors) -> list[torch.Tensor]:
        binding = session.io_binding()
        held = {name: tensor.contiguous() for name, tensor in batch.items()}
        for name, tensor in held.items():  # by address: `held` keeps them alive
            numpy_type = torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
            binding.bind_input(name, *place, numpy_type, tuple(tensor.shape), tensor.data_ptr())
        for name in outputs:
            binding.bind_output(name, *place)
        with _joined(stream):
            session.run_with_iobinding(binding, options)
            # Copied, as the memory belongs to the session.
            return [_copy(value, device) for value in binding.get_outputs()]

    return run


def _copy(value: Any, device: torch.device) -> torch.Tensor:
    import torch

    held: Any = _Held(value, device)
    held = held if device.type == "cuda" else np.asarray(held)
    return torch.as_tensor(held, device=device).clone()


@contextlib.contextmanager
def _joined(stream: Any) -> Iterator[None]:
    """Run the body on a stream, ordered with the work of the current stream."""
    import torch

    if stream is None:
        yield
        return
    current = torch.cuda.current_stream()
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


RUNTIME = OnnxRuntime()
