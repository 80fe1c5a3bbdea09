"""Tell from its name and its bytes whether a file can be weights.

Nothing is loaded or run: whether a file of torch.save holds tensors alone is decided by torch, with
`weights_only`.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import PurePosixPath

from pipeline.core.errors import JobError

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
"""What such a file begins with, and what is wrong with it."""
_WEB = (b"<!doctype", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before it wrote zip archives."""
_HEAD_BYTES, _LENGTH_BYTES = 64, 8


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
    """Say what a file is, by its first bytes, if it was not fetched whole; None: it may be."""
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
    """Tell whether a file begins as safetensors do: with the length of a JSON object, and it."""
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
    """Say what is wrong with a zip archive: those of torch.save have `data.pkl` and no code."""
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
