"""Calibrated int8 models in the output: stored under their digest, fetched once per node."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pipeline.core.cache.node_cache import cached_folder
from pipeline.core.errors import InfraError, JobError
from pipeline.inference.runtimes.int8 import INT8
from pipeline.models.directories.onnx.graph import is_external, tensors
from pipeline.storage.store import Store

_FILE = "model.onnx"


def model_path(sha256: str) -> str:
    """Return the path of a calibrated model in the output; all partitions share it."""
    return f"_control/models/{sha256}.onnx"


def store_model(store: Store, data: bytes) -> str:
    """Store a calibrated model under its SHA-256 digest, and return the digest."""
    sha256 = hashlib.sha256(data).hexdigest()
    _refuse_external_data(data, sha256)
    # Other processes write the same bytes to this path.
    store.put(model_path(sha256), data)
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
        data = store.read_bytes(model_path(sha256))
        _check(data, sha256, store.url(model_path(sha256)))
        (folder / _FILE).write_bytes(data)

    try:
        path = cached_folder(f"{INT8}-{sha256}", fetch) / _FILE
    except FileNotFoundError:
        raise InfraError(
            f"{store.url(model_path(sha256))}: the calibrated model of this run is gone; put it "
            "back, or choose another model.precision"
        ) from None
    data = path.read_bytes()
    _check(data, sha256, str(path))
    return data


def _check(data: bytes, sha256: str, place: str) -> None:
    found = hashlib.sha256(data).hexdigest()
    if found != sha256:
        raise JobError(f"{place}: sha256 is {found}, expected {sha256}")
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
