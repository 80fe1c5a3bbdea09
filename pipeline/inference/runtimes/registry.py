"""Ways to run one model: the same weights, the same outputs, different speeds."""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.node_cache import one_at_a_time
from pipeline.inference import output_tree as pytree
from pipeline.inference.runtimes.export import Flat, Made
from pipeline.inference.runtimes.inference_module import Whole
from pipeline.models.spec import CPU_PRECISIONS, GPU_PRECISIONS, INT8, PRECISIONS

_DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    INT8: torch.float32,  # what is calibrated is the float32 model
}
_PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino",),
    "mnn": ("MNN", "onnx", "onnxscript"),
}
_QUANTISING = _PACKAGES["onnxruntime"]
_CPU_RUNTIMES = ("openvino", "mnn")
_BF16_FLAGS = frozenset(["avx512_bf16", "amx_bf16", "bf16"])
_OPENVINO_HINTS = {"fp32": "f32", "bf16": "bf16", INT8: "f32"}


@dataclass(frozen=True)
class Runner:
    """One model, ready to run."""

    run: Callable[[torch.Tensor], Any]
    is_static: bool
    """It takes only whole batches: pad the last one and drop what comes back for the padding."""


def dtype_of(runtime: str, precision: str) -> torch.dtype:
    """Return the type that a module has to have for a runtime; openvino converts by itself."""
    return torch.float32 if runtime == "openvino" else _DTYPES[precision]


def emulated_reason(precision: str, *, is_on_gpu: bool) -> str:
    """Say why a precision gains nothing here, or ''."""
    cpuinfo = Path("/proc/cpuinfo")
    if precision != "bf16" or is_on_gpu or not cpuinfo.exists():
        return ""
    words = set(cpuinfo.read_text().split())
    return "" if words & _BF16_FLAGS else "this CPU has no bf16 arithmetic, it would be emulated"


def missing_reason(runtime: str, precision: str, *, is_on_gpu: bool) -> str:
    """Say why a runtime cannot be used here in a precision, or ''."""
    needed = {name: runtime for name in _PACKAGES.get(runtime, ())}
    if precision == INT8:
        needed |= dict.fromkeys(_QUANTISING, "onnxruntime")
    absent = [name for name in needed if not importlib.util.find_spec(name)]
    if absent:
        return f"{absent[0]} is not installed: the extra `{needed[absent[0]]}` brings it"
    if precision not in PRECISIONS[runtime]:
        return f"{runtime} runs {', '.join(PRECISIONS[runtime])}, not {precision}"
    if precision in CPU_PRECISIONS and is_on_gpu:
        return f"{precision} is used on the CPU only"
    if precision in GPU_PRECISIONS and not is_on_gpu:
        return f"{precision} needs a GPU; on the CPU use fp32 or bf16"
    if runtime in _CPU_RUNTIMES and is_on_gpu:
        return f"{runtime} is used on the CPU only"
    if (runtime, precision) == ("openvino", "bf16") and not _openvino_has_bf16():
        return "openvino would run fp32, for this CPU has no bf16"
    return ""


def _openvino_has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def make_runner(
    runtime: str,
    precision: str,
    load: Callable[[], Whole],
    example: torch.Tensor,
    *,
    num_threads: int,
    identity: str | None = None,
    calibrated: bytes | None = None,
) -> Runner:
    """Make a module ready to run.

    Args:
        runtime: One of `PRECISIONS`.
        precision: One that the runtime has.
        load: Gives the module on its device, of type `dtype_of`, in eval mode. Not called where
            the node has kept what the runtime once made of it.
        example: A whole batch on the device; what it holds does not matter.
        num_threads: CPU threads.
        identity: All that decides the module's outputs; None where only its tensors tell.
        calibrated: Precision int8: the checked model that runs instead of the module.

    Raises:
        JobError: The runtime is not here or cannot run the module.
    """
    allow_tf32(precision)
    reason = missing_reason(runtime, precision, is_on_gpu=example.is_cuda)
    if reason:
        raise JobError(f"model.runtime {runtime!r}, model.precision {precision!r}: {reason}")
    if precision == INT8 and calibrated is None:
        raise JobError(f"model.precision {INT8!r}: there is no calibrated model to run")
    load = functools.cache(load)
    if runtime in ("eager", "compile"):
        load()  # its own errors are not the runtime's
    if runtime == "eager":
        return Runner(load(), is_static=False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of exporters about each other
            if runtime == "compile":
                with one_at_a_time(runtime):  # torch keeps what it compiled by itself
                    return _compiled(load(), example)
            made = Made(load, example, identity)
            if runtime == "onnxruntime":
                return _onnxruntime(made, num_threads, calibrated)
            if runtime == "mnn":
                return _mnn(made, num_threads)
            return _openvino(made, precision, num_threads, calibrated)
    except PipelineError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise JobError(f"model.runtime = {runtime!r}: cannot run this model: {reason}") from error


def allow_tf32(precision: str) -> None:
    """Let this process use TF32 in this precision, and in no other."""
    allowed = precision == "tf32"
    # torch allows TF32 in convolutions unless told otherwise: fp32 would not be fp32.
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def _compiled(whole: Whole, example: torch.Tensor) -> Runner:
    if example.is_cuda:
        run = torch.compile(whole, dynamic=False, mode="max-autotune")
    else:
        run = torch.compile(whole, dynamic=False, options={"freezing": True})
    with torch.no_grad():  # freezing folds weights only where none can change
        run(example)

    def call(batch: torch.Tensor) -> Any:
        with torch.inference_mode(False), torch.no_grad():
            return run(batch)

    return Runner(call, is_static=True)


def _onnxruntime(made: Made, num_threads: int, calibrated: bytes | None) -> Runner:
    import onnxruntime

    structure = made.structure()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
    options.log_severity_level = 3
    # Threads that spin while they wait take the cores of the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = ["CUDAExecutionProvider"] if made.example.is_cuda else []
    providers = [p for p in wanted if p in onnxruntime.get_available_providers()]
    if wanted and not providers:
        raise JobError("this onnxruntime has no CUDA provider: install onnxruntime-gpu")
    session = onnxruntime.InferenceSession(
        str(made.onnx()) if calibrated is None else calibrated,
        options,
        providers=[*providers, "CPUExecutionProvider"],
    )
    name = session.get_inputs()[0].name

    def run(batch: torch.Tensor) -> Any:
        arrays = session.run(None, {name: batch.cpu().numpy()})
        return pytree.tree_unflatten([torch.from_numpy(array) for array in arrays], structure)

    return Runner(run, is_static=True)


def _openvino(made: Made, precision: str, num_threads: int, calibrated: bytes | None) -> Runner:
    import openvino

    def convert(folder: Path, flat: Flat) -> None:
        # Two rows show as much as a whole batch, and are traced in a tenth of the time.
        model = openvino.convert_model(flat, example_input=made.example[:2])
        model.reshape(list(made.example.shape))
        openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)

    structure = made.structure()
    core = openvino.Core()
    compiled = core.compile_model(
        made.folder("openvino", convert) / "model.xml"
        if calibrated is None
        else core.read_model(calibrated),
        "CPU",
        {
            # Its default where the CPU has bf16 is bf16.
            "INFERENCE_PRECISION_HINT": _OPENVINO_HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()
    count = len(compiled.outputs)

    def run(batch: torch.Tensor) -> Any:
        request.infer([batch.numpy()], share_inputs=True)
        leaves = [torch.from_numpy(request.get_output_tensor(i).data.copy()) for i in range(count)]
        return pytree.tree_unflatten(leaves, structure)

    return Runner(run, is_static=True)


def _mnn(made: Made, num_threads: int) -> Runner:
    from pipeline.inference.runtimes.mnn import convert, open_model

    structure = made.structure()
    folder = made.folder("mnn", lambda folder, flat: convert(made.onnx(), folder / "model.mnn"))
    infer = open_model(folder / "model.mnn", num_threads)

    def run(batch: torch.Tensor) -> Any:
        leaves = [torch.from_numpy(array) for array in infer(batch.numpy())]
        return pytree.tree_unflatten(leaves, structure)

    return Runner(run, is_static=True)
