"""Read weights as data: safetensors, or a state dict loaded with weights_only, checked by digest.

Pickled modules, TorchScript and .pt2 archives are code and refused.

A factory with random parameters, or with files of its own, may give other tensors at each call.
Random ones are seeded, and the first actor of a plan stores a digest of its tensors beside it, in
the output; an actor or a resumed run with other tensors is refused, so that two models never mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import random
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.core.documents import sealed, unsealed
from pipeline.core.errors import JobError
from pipeline.core.node_cache import tensors_digest
from pipeline.core.printable import clean_message
from pipeline.storage.create_once import CreateOutcome
from pipeline.storage.store import Store, read_file

if TYPE_CHECKING:
    import torch

_REASON_CHARS = 200
_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
log = logging.getLogger(__name__)
_SEED_BYTES = 4
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SAVE = (
    'save a state dict: torch.save(model.state_dict(), "w.pth"), and name the architecture in '
    "model.name or model.factory"
)
_CODE = "which can run code when it is loaded"
_BY_SUFFIX = {
    ".pt2": f"is an exported program (torch.export), {_CODE}; {SAVE}",
    **dict.fromkeys((".torchscript", ".ts"), f"is a TorchScript archive, {_CODE}; {SAVE}"),
    **dict.fromkeys((".pkl", ".pickle", ".joblib"), f"is a pickle, {_CODE}; {SAVE}"),
    **dict.fromkeys(
        (".h5", ".hdf5", ".keras"), f"is a Keras model; convert it to PyTorch, then {SAVE}"
    ),
    ".onnx": "is a whole model, not weights: name it in model.path",
    ".ckpt": "is a training checkpoint, as Lightning writes it; save its weights alone: "
    'torch.save(torch.load(FILE, weights_only=True)["state_dict"], "w.pth")',
}
GIT_LFS = (
    b"version https://git-lfs",
    "is a pointer of Git LFS, not the file itself: run git lfs pull",
)
"""First bytes of such a file, and the message about it."""
_WEB = (b"<!doctype", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before it wrote zip archives."""
_HEAD_BYTES, _LENGTH_BYTES = 64, 8


def weights_digest(
    uri: str | None, expected: str | None, storage_options: Mapping[str, Any]
) -> str | None:
    """Return the SHA-256 digest for the fingerprint: the expected one, otherwise the file's.

    The file is read only if the digest is unknown.

    Raises:
        JobError: The file is missing, or not weights.
    """
    if uri is None:
        if expected is not None:
            raise JobError("model.weights_sha256: there is no weights file to compare it with")
        return None
    check_suffix(uri)
    weights_bytes(uri, storage_options)
    if expected is not None:
        return expected  # each actor checks it against the bytes that it loads
    data = read_file(uri, storage_options, "model.weights")
    check_weights(f"model.weights = {uri}", data)
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
    check_weights(f"model.weights = {uri}", data)
    digest = hashlib.sha256(data).hexdigest()
    if digest != expected_sha256:
        raise JobError(f"{uri}: sha256 is {digest}, expected {expected_sha256}")
    if uri.endswith(".safetensors"):
        return _of_safetensors(uri, data)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  # any error of the parser means that the weights are unusable
        raise JobError(f"{uri}: not a plain state dict: {_reason(error)}") from None
    if not isinstance(state, dict):
        raise JobError(f"{uri}: holds a {type(state).__name__}, expected names and tensors; {SAVE}")
    return state


def _of_safetensors(uri: str, data: bytes) -> dict[Any, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(data))
    except (SafetensorError, KeyError, ValueError) as error:
        reason = clean_message(str(error), _REASON_CHARS)
        raise JobError(f"{uri}: is damaged or cut off: {reason}; copy it again") from None


def weights_bytes(uri: str, storage_options: Mapping[str, Any]) -> int:
    """Return the size of a weights file.

    Raises:
        JobError: There is none.
    """
    folder, _, name = uri.rpartition("/")
    store = Store(folder or ("/" if uri.startswith("/") else "."), storage_options)
    file = store.stat(name) if name else None
    if file is None:
        is_folder = not name or store.exists(name)
        what = "is a folder; name the file in it" if is_folder else "no such file"
        raise JobError(f"model.weights = {uri}: {what}")
    return file.size_bytes


def _reason(error: Exception) -> str:
    reason = f"{type(error).__name__}: {error}"
    if "weights_only" in reason:  # the rest of torch's message explains how to load it unsafely
        match = _GLOBAL.search(reason)
        what = f" ({match.group(1)})" if match else ""
        return f"it holds more than tensors{what}, and loading that could run code; {SAVE}"
    return clean_message(reason, _REASON_CHARS)


@contextlib.contextmanager
def seeded(name: str, salt: str = "") -> Iterator[None]:
    """Seed the random generators the same in every process, and restore them afterwards.

    Args:
        name: The name of the model, which decides the seed.
        salt: Changes the seed, to find out whether parameters are random.
    """
    import torch

    digest = hashlib.sha256(f"{name}{salt}".encode()).digest()
    seed = int.from_bytes(digest[:_SEED_BYTES], "big")
    plain, arrays = random.getstate(), np.random.get_state()
    has_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(range(torch.cuda.device_count()) if has_gpu else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(arrays)


def warn_random_weights(factory: str) -> None:
    """Log a warning that the parameters of a factory's model may be random."""
    log.warning(
        "model.factory = %r without model.weights: its parameters, if it has some that it does not "
        "load itself, are random (seeded: the same in every run); `pipeline plan` tells",
        factory,
    )


def pin(store: Store, path: str, module: torch.nn.Module, name: str) -> None:
    """Store the digest of a module's tensors, or compare it with the stored one.

    Raises:
        JobError: An earlier actor of the same plan had other tensors.
    """
    digest, token = tensors_digest(module), uuid.uuid4().hex
    data = sealed({"tensors_sha256": digest, "model": name, "token": token})
    if store.create_once(path, data, token) is not CreateOutcome.OTHER:
        return
    try:
        kept = unsealed(store.read_bytes(path))["tensors_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        log.warning("%s: is damaged, so it is written anew: %s", store.url(path), error)
        store.put(path, data)
        return
    if kept != digest:
        raise JobError(
            f"model {name}: has other tensors than before in this very plan ({digest[:12]}, not "
            f"{kept[:12]}), so predictions of two models would mix; name its weights in "
            "model.weights, or seed what its module draws and pin what it reads "
            "(examples/custom_model): changed code starts anew"
        )


def check_suffix(uri: str) -> None:
    """Refuse code, and unknown kinds of files, by the name.

    Raises:
        JobError: The name is refused; says what it is and what to use instead.
    """
    suffix = PurePosixPath(uri.lower()).suffix
    if suffix in _BY_SUFFIX:
        raise JobError(f"model.weights = {uri}: {_BY_SUFFIX[suffix]}")
    if not uri.endswith(WEIGHT_SUFFIXES):
        raise JobError(f"model.weights = {uri}: expected one of {', '.join(WEIGHT_SUFFIXES)}")


def check_weights(named: str, data: bytes) -> None:
    """Refuse a file that is not weights, by its bytes; nothing is loaded.

    What is wrong with safetensors, their own library says when it loads them.

    Args:
        named: Field and file, for messages; the suffix gives the expected kind.

    Raises:
        JobError: The file is refused; says what it is and what to use instead.
    """
    fault = _fault(named, data)
    if fault is not None:
        raise JobError(f"{named}: {fault}")


def fault_of_download(head: bytes) -> str | None:
    """Describe a file that was not fetched whole, by its first bytes; None if it may be whole."""
    if not head:
        return "is empty (0 bytes); copy it again"
    if has_header(head):  # its length may be any bytes
        return None
    if head.startswith(GIT_LFS[0]):
        return GIT_LFS[1]
    if head.lstrip().lower().startswith(_WEB):
        return "is a web page or XML, not weights: a download that went wrong?"
    return None


def has_header(head: bytes) -> bool:
    """Tell whether a file begins as safetensors do: with the length of a JSON object."""
    return head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"


def _fault(named: str, data: bytes) -> str | None:
    head = data[:_HEAD_BYTES]
    if (fault := fault_of_download(head)) is not None:
        return fault
    is_torch = head.startswith(_ZIP) or _LEGACY_TORCH in head
    if named.endswith(".safetensors"):
        if is_torch:
            return "is a file of torch.save: let its name end in .pth"
        return None if has_header(head) else f"is no safetensors file, or it is damaged; {SAVE}"
    if head.startswith(_ZIP):
        return _archive_fault(data)
    if is_torch:
        return None
    if has_header(head):
        return "holds safetensors: let its name end in .safetensors"
    return f"neither torch.save nor safetensors made it, or it is damaged; {SAVE}"


def _archive_fault(data: bytes) -> str | None:
    """Describe the fault of a zip archive: those of torch.save have `data.pkl` and no code."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inner = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return (
            f"is cut off or damaged: an archive of {len(data)} bytes without its end; copy it again"
        )
    if "data.pkl" in inner and "constants.pkl" not in inner:
        return None
    return (
        "is an archive that torch.save did not make, such as TorchScript, an exported program or a "
        f"Keras model; {SAVE}"
    )
