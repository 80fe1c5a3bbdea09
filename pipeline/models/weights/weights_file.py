"""Tell from its name, its first bytes and its length whether a file can be weights.

Nothing is loaded or run: whether a file of torch.save holds tensors alone is decided by torch, with
`weights_only`.
"""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import PurePosixPath
from typing import Any, BinaryIO

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
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 32 << 20


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


def check_weights(named: str, file: BinaryIO, size_bytes: int) -> None:
    """Refuse a file that is truncated or not weights, by its bytes; nothing is loaded.

    Args:
        named: Field and file, for messages; the suffix gives the expected kind.
        file: Open at its start, seekable.
        size_bytes: The length of the file.

    Raises:
        JobError: The file is refused; says what it is and what to use instead.
    """
    found = _fault(named, file, size_bytes)
    if found is not None:
        raise JobError(f"{named}: {found}")


def _fault(named: str, file: BinaryIO, size_bytes: int) -> str | None:
    if not size_bytes:
        return "is empty (0 bytes); copy it again"
    head = file.read(64)
    has_header = head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{"  # a length may be any bytes
    is_torch = head.startswith(_ZIP) or _LEGACY_TORCH in head
    if not has_header and head.startswith(GIT_LFS[0]):
        return GIT_LFS[1]
    if not has_header and head.lstrip().lower().startswith(_WEB):
        return "is a web page or XML, not weights: a download that went wrong?"
    if named.endswith(".safetensors"):
        if is_torch:
            return "is a file of torch.save: let its name end in .pth"
        return _safetensors_fault(file, size_bytes)
    if head.startswith(_ZIP):
        return _archive_fault(file, size_bytes)
    if is_torch:
        return None
    if has_header:
        return "holds safetensors: let its name end in .safetensors"
    return f"neither torch.save nor safetensors made it, or it is damaged; {SAVE}"


def _safetensors_fault(file: BinaryIO, size_bytes: int) -> str | None:
    file.seek(0)
    length = int(struct.unpack("<Q", file.read(_LENGTH_BYTES).ljust(_LENGTH_BYTES, b"\0"))[0])
    if file.read(1) != b"{":
        return f"is no safetensors file, or it is damaged; {SAVE}"
    if length > _MAX_HEADER_BYTES:
        return f"its header claims {length} bytes, which no model needs: damaged?"
    if _LENGTH_BYTES + length > size_bytes:
        return (
            f"is cut off: its header takes {length} bytes, the file has {size_bytes} bytes; "
            "copy it again"
        )
    file.seek(_LENGTH_BYTES)
    try:
        entries = json.loads(file.read(length))
        ends = [_end(entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"its header is no list of tensors: damaged? {SAVE}"
    expected = _LENGTH_BYTES + length + max(ends, default=0)
    if size_bytes < expected:
        return (
            f"is cut off: its header names {expected / 1e6:.1f} MB, the file has {size_bytes} "
            "bytes; copy it again"
        )
    if size_bytes > expected:
        return f"has {size_bytes - expected} bytes more than its header names; copy it again"
    return None


def _end(entry: Any) -> int:
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end < 2**62:
        raise ValueError("offsets that cannot be")
    return end


def _archive_fault(file: BinaryIO, size_bytes: int) -> str | None:
    """Say what is wrong with a zip archive: those of torch.save have `data.pkl` and no code."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            inner = {name.partition("/")[2] or name for name in archive.namelist()}
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return (
            f"is cut off or damaged: an archive of {size_bytes} bytes without its end; "
            "copy it again"
        )
    if "data.pkl" in inner and "constants.pkl" not in inner:
        return None
    return (
        "is an archive that torch.save did not make, such as TorchScript, an exported program or a "
        f"Keras model; {SAVE}"
    )
