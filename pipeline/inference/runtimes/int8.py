"""int8 models: calibrated once on rows of the job, stored with the output, checked before use.

Weights are int8 per output channel, activations uint8 per tensor; inputs, outputs and normalisation
stay float32. In models of texts only matrix products with weights are int8, not those of attention,
which multiply two activations. Their results stay float32: with int8 results the mean cosine of
MiniLM's embeddings to fp32 was 0.93 instead of 0.99. Calibration depends on rows and machine, so it
happens once: the model is stored in the output under its digest, and all nodes and reruns load
these bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import InfraError, JobError
from pipeline.core.node_cache import cached_folder
from pipeline.core.output_folders import calibrated_model
from pipeline.models.directories.onnx.graph import is_external, tensors
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import onnx


INT8 = "int8"
EXTRA = "onnxruntime"
PACKAGES = ("onnxruntime", "onnx", "onnxscript")
"""Packages that calibrate a model; the extra installs them."""
_INT8_MAX = 127
_PRODUCTS = ("MatMul", "Gemm")
"""Operators that multiply matrices."""
Batch = Sequence[npt.NDArray[Any]]
"""The tensors of a batch, each (B, ...), in the order of a model's inputs."""
_FILE = "model.onnx"


def missing_reason(*, is_on_gpu: bool = False) -> str:
    """Return why models cannot be calibrated here, or ''."""
    if is_on_gpu:
        return f"{INT8} is used on the CPU only"
    absent = [name for name in PACKAGES if not importlib.util.find_spec(name)]
    how = f"pip install 'batch-inference-pipeline[{EXTRA}]'"
    return f"{absent[0]} is not installed: {how}" if absent else ""


def quantise(source: Path, batches: Iterable[Batch], *, only_products: bool = False) -> bytes:
    """Quantise an ONNX model by the value ranges that batches of rows have in it.

    Args:
        source: Path of a float32 model.
        batches: Read one by one; their shapes may vary if the model's may. The range of a tensor
            spans its smallest and largest value in any batch.
        only_products: Quantise only matrix products with constant weights.

    Returns:
        Bytes of an ONNX model of the same inputs and outputs, with QuantizeLinear and
        DequantizeLinear.

    Raises:
        ValueError: With `only_products`, if there is none.
    """
    import onnx
    from onnxruntime import quantization

    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, target = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        # Symbolic shape inference needs another package, and is not needed for weights.
        quantization.quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        quantization.quantize_static(
            prepared,
            target,
            _reader([value.name for value in graph.input], batches),
            per_channel=True,
            # For weights without `_weight_scales`: 7 bits never saturate.
            reduce_range=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            **_options(graph, only_products=only_products),
        )
        return target.read_bytes()


def _options(graph: onnx.GraphProto, *, only_products: bool) -> dict[str, Any]:
    """Return arguments of the quantiser that select what is quantised."""
    extra: dict[str, Any] = {"TensorQuantOverrides": _weight_scales(graph)}
    if not only_products:
        return {"extra_options": extra}
    extra["OpTypesToExcludeOutputQuantization"] = _PRODUCTS
    return {
        "op_types_to_quantize": _PRODUCTS,
        "nodes_to_quantize": _products(graph),
        "extra_options": extra,
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's log messages about other options."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _reader(names: Sequence[str], batches: Iterable[Batch]) -> Any:
    """Return the quantiser's reader of batches, by the names of the model's inputs."""
    from onnxruntime.quantization import CalibrationDataReader

    feeds = (dict(zip(names, batch, strict=True)) for batch in batches)

    class Batches(CalibrationDataReader):  # type: ignore[misc]  # the library has no types
        def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
            return next(feeds, None)

    return Batches()


def _products(graph: onnx.GraphProto) -> list[str]:
    """Return the names of the matrix products whose second factor is a weight.

    Raises:
        ValueError: There is none.
    """
    weights = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    products = [
        node.name
        for node in graph.node
        if node.op_type in _PRODUCTS and node.name and node.input[1] in weights
    ]
    if not products:
        raise ValueError("the model has no matrix product with a constant weight")
    return products


def _weight_scales(graph: onnx.GraphProto) -> dict[str, list[dict[str, Any]]]:
    """Choose the scales of weights so that 16-bit sums of two products cannot overflow.

    CPUs without VNNI add the products of neighbouring inputs in 16 bits, and saturate. Halving all
    weights prevents that and costs a bit of each. Only a channel whose neighbours are both large
    needs it: 255 * (|a| + |b|) must stay below 2**15 for neighbours of one sign. A depthwise
    convolution has one input per channel, so no neighbours.
    """
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    initializers = {tensor.name: tensor for tensor in graph.initializer}
    overrides = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in initializers:
            continue
        values = numpy_helper.to_array(initializers[node.input[1]])
        if values.dtype != np.float32 or values.ndim < 2:
            continue
        axis = _channel_axis(node)
        if axis == 1 and values.ndim > 2:
            continue  # a stack of matrices
        scales = _channel_scales(np.moveaxis(values, axis, 0).astype(np.float64))
        shared = {"quant_type": QuantType.QInt8, "zero_point": np.array(0, np.int8)}
        channels = [{**shared, "scale": np.array(scale, np.float32)} for scale in scales]
        overrides[node.input[1]] = [{**channels[0], "axis": axis}, *channels[1:]]
    return overrides


def _channel_axis(node: onnx.NodeProto) -> int:
    """Return the axis of a weight's output channels."""
    is_transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or is_transposed else 1


def _channel_scales(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return float64 (out,): the scale per output channel of weights (out, in, ...)."""
    num_channels, num_inputs = weights.shape[:2]
    # In the order of the kernels: all inputs of one pixel, then those of the next pixel.
    walk = np.moveaxis(weights, 1, -1).reshape(num_channels, -1)
    largest = np.abs(walk).max(axis=1)
    if num_inputs > 1:
        step = 1 if num_inputs % 2 else 2  # an odd number pairs with the next pixel's
        first, second = walk[:, :-1:step], walk[:, 1::step]
        # Rounding may add 1 to 127: 255 * 128 still fits.
        sums = np.where(first * second > 0, np.abs(first + second), 0.0)
        largest = np.maximum(largest, sums.max(axis=1))
    return np.where(largest == 0.0, 1.0, largest / _INT8_MAX)


def store_model(store: Store, data: bytes) -> str:
    """Store a calibrated model under its SHA-256 digest, and return the digest."""
    sha256 = hashlib.sha256(data).hexdigest()
    _refuse_external_data(data, sha256)
    # Other processes write the same bytes to this path.
    store.put(calibrated_model(sha256), data)
    return sha256


def fetch_model(store: Store | None, sha256: str | None) -> bytes:
    """Return a calibrated model, cached on this node.

    Raises:
        JobError: Its digest differs, or it refers to other files.
        InfraError: It is missing.
    """
    if store is None or sha256 is None:
        raise JobError(f"model.precision = {INT8!r}: no calibrated model was given")

    def fetch(folder: Path) -> None:
        data = store.read_bytes(calibrated_model(sha256))
        _check(data, sha256, store.url(calibrated_model(sha256)))
        (folder / _FILE).write_bytes(data)

    try:
        path = cached_folder(f"{INT8}-{sha256}", fetch) / _FILE
    except FileNotFoundError:
        raise InfraError(
            f"{store.url(calibrated_model(sha256))}: the calibrated model of this run is gone; "
            "put it back, or choose another model.precision"
        ) from None
    data = path.read_bytes()
    _check(data, sha256, str(path))
    return data


def _check(data: bytes, sha256: str, place: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise JobError(f"{place}: sha256 is {digest}, expected {sha256}")
    _refuse_external_data(data, place)


def _refuse_external_data(data: bytes, place: str) -> None:
    """Refuse a model that makes its reader open other files."""
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that it is not a model
        raise JobError(f"{place}: no ONNX model: {type(error).__name__}") from None
    for tensor in tensors(model):
        if is_external(tensor):
            raise JobError(f"{place}: tensor {tensor.name!r} lies in another file; refused")
