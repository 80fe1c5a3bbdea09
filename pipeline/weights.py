"""Weights are data: safetensors, or a state dict loaded with weights_only, checked by digest.

Pickled modules, TorchScript and .pt2 archives are code and refused.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pipeline.errors import JobError
from pipeline.single_file import read_file

if TYPE_CHECKING:
    import torch

_CODE_SUFFIXES = (".pt2", ".torchscript", ".ts", ".pkl", ".pickle")
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


def check_suffix(uri: str) -> None:
    """Refuse what is code, or no known kind of weights, by its name.

    Raises:
        JobError: Says which suffixes are fine.
    """
    if uri.endswith(_CODE_SUFFIXES):
        raise JobError(f"model.weights = {uri}: such a file can run code; save a state dict")
    if not uri.endswith(WEIGHT_SUFFIXES):
        raise JobError(f"model.weights = {uri}: expected one of {', '.join(WEIGHT_SUFFIXES)}")


def weights_digest(
    uri: str | None, expected: str | None, storage_options: Mapping[str, Any]
) -> str | None:
    """Return the digest that decides the fingerprint: the expected one, else the file's.

    Raises:
        JobError: There is no file to compare the expected digest with.
    """
    if uri is None:
        if expected is not None:
            raise JobError("model.weights_sha256: there is no weights file to compare it with")
        return None
    if expected is not None:
        return expected  # each actor checks it on the bytes that it loads
    return hashlib.sha256(read_file(uri, storage_options, "model.weights")).hexdigest()


def read_state_dict(
    uri: str, expected_sha256: str | None, storage_options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """Read weights onto the CPU.

    Raises:
        JobError: The digest is another one, or the file holds anything but names and tensors.
    """
    import torch

    data = read_file(uri, storage_options, "model.weights")
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected_sha256:
        raise JobError(f"{uri}: sha256 is {digest}, expected {expected_sha256}")
    try:
        if uri.endswith(".safetensors"):
            from safetensors.torch import load

            weights: dict[str, torch.Tensor] = load(data)
            return weights
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # any parser error means: not usable weights
        reason = f"{type(error).__name__}: {error}"
        if "weights_only" in reason:  # torch goes on to explain how to load it all the same
            reason = "it holds more than tensors, and loading that could run code"
        reason = " ".join(reason.split())[:200]
        raise JobError(f"{uri}: not a plain state dict: {reason}") from None
    if not (isinstance(state, dict) and all(isinstance(key, str) for key in state)):
        raise JobError(f"{uri}: holds a {type(state).__name__}, expected names and tensors")
    return state
