"""Weights are data: safetensors, or a state dict loaded with weights_only, checked by digest.

Pickled modules, TorchScript and .pt2 archives are code and refused.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.weights.weights_file import SAVE, check_suffix, check_weights
from pipeline.storage.single_file import read_file
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import torch

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")


def weights_digest(
    uri: str | None, expected: str | None, storage_options: Mapping[str, Any]
) -> str | None:
    """Return the SHA-256 digest for the fingerprint: the expected one, otherwise the file's.

    The file's header is checked; the rest is read only if the digest is unknown.

    Raises:
        JobError: The file is missing, truncated, or not weights.
    """
    if uri is None:
        if expected is not None:
            raise JobError("model.weights_sha256: there is no weights file to compare it with")
        return None
    check_suffix(uri)
    if expected is not None:
        _check_header(uri, storage_options)
        return expected  # each actor checks it against the bytes that it loads
    _require_file(uri, storage_options)
    data = read_file(uri, storage_options, "model.weights")
    check_weights(f"model.weights = {uri}", io.BytesIO(data), len(data))
    return hashlib.sha256(data).hexdigest()


def read_weights(
    uri: str, expected_sha256: str | None, storage_options: Mapping[str, Any]
) -> dict[Any, Any]:
    """Read the content of a weights file: tensors by name on the CPU, perhaps in nested dicts.

    Raises:
        JobError: The digest differs, or the file cannot be loaded without running code.
    """
    import torch

    data = read_file(uri, storage_options, "model.weights")
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected_sha256:
        raise JobError(f"{uri}: sha256 is {digest}, expected {expected_sha256}")
    check_weights(f"model.weights = {uri}", io.BytesIO(data), len(data))
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            weights: dict[Any, torch.Tensor] = load(data)
            return weights
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that the weights are unusable
        raise JobError(f"{uri}: not a plain state dict: {_reason(error)}") from None
    if not isinstance(state, dict):
        raise JobError(f"{uri}: holds a {type(state).__name__}, expected names and tensors; {SAVE}")
    return state


def weights_bytes(uri: str, storage_options: Mapping[str, Any]) -> int:
    """Return the size of a weights file.

    Raises:
        JobError: There is none.
    """
    return _require_file(uri, storage_options)[2]


def _reason(error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if "weights_only" in reason:  # the rest of torch's message explains how to load it unsafely
        found = _GLOBAL.search(reason)
        what = f" ({found.group(1)})" if found else ""
        return f"it holds more than tensors{what}, and loading that could run code; {SAVE}"
    words = " ".join(reason.split())
    return words if len(words) <= 200 else f"{words[:200].rpartition(' ')[0]} ..."


def _check_header(uri: str, storage_options: Mapping[str, Any]) -> None:
    store, name, size_bytes = _require_file(uri, storage_options)
    with store.open(name) as file:
        check_weights(f"model.weights = {uri}", file, size_bytes)


def _require_file(uri: str, storage_options: Mapping[str, Any]) -> tuple[Store, str, int]:
    folder, _, name = uri.rpartition("/")
    store = Store(folder or ("/" if uri.startswith("/") else "."), storage_options)
    found = store.stat(name) if name else None
    if found is None:
        is_folder = not name or store.exists(name)
        what = "is a folder; name the file in it" if is_folder else "no such file"
        raise JobError(f"model.weights = {uri}: {what}")
    return store, name, found.size_bytes
