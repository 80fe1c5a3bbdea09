"""Tell from its name and its bytes whether a file can be weights, without loading or running it.

Headers only: the JSON of safetensors, the list of a zip archive, the opcodes of a small pickle.
"""

from __future__ import annotations

import json
import pickletools
import struct
import zipfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
SAVE = (
    'save a state dict: torch.save(model.state_dict(), "w.pth"), and name the architecture in '
    "model.name or model.factory"
)
_TORCHSCRIPT = "is a TorchScript archive, which can run code when it is loaded"
_EXPORTED = "is an exported program (torch.export), which can run code when it is loaded"
_PICKLE = "is a pickle, which can run code when it is loaded"
_KERAS = "is a Keras model; convert it to PyTorch, then"
_ONNX = "is a whole model, not weights: name it in model.path"
_CHECKPOINT = (
    "is a training checkpoint, as Lightning writes it; save its weights alone: "
    'torch.save(torch.load(FILE, weights_only=True)["state_dict"], "w.pth")'
)
_BY_SUFFIX = {
    ".pt2": f"{_EXPORTED}; {SAVE}",
    ".torchscript": f"{_TORCHSCRIPT}; {SAVE}",
    ".ts": f"{_TORCHSCRIPT}; {SAVE}",
    ".pkl": f"{_PICKLE}; {SAVE}",
    ".pickle": f"{_PICKLE}; {SAVE}",
    ".joblib": f"{_PICKLE}; {SAVE}",
    ".onnx": _ONNX,
    ".h5": f"{_KERAS} {SAVE}",
    ".hdf5": f"{_KERAS} {SAVE}",
    ".keras": f"{_KERAS} {SAVE}",
    ".ckpt": _CHECKPOINT,
}
GIT_LFS = (
    b"version https://git-lfs",
    "is a pointer of Git LFS, not the file itself: run git lfs pull",
)
"""What such a file begins with, and what is wrong with it."""
_BY_START = (
    GIT_LFS,
    (b"\x89HDF\r\n", f"{_KERAS} {SAVE}"),
    (b"\x1f\x8b", "is gzipped: unpack it first"),
    (b"GGUF", f"is a GGUF model, which is not read; {SAVE}"),
    (b"\x93NUMPY", f"is a NumPy array; {SAVE}"),
)
_WEB = (b"<!doctype", b"<html", b"<?xml")
_ZIP = b"PK\x03\x04"
_LEGACY_TORCH = b"l\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before it wrote zip archives."""
_LENGTH_BYTES = 8
_MAX_HEADER_BYTES = 32 << 20
_MAX_PICKLE_BYTES = 1 << 20
_PLAIN_ROOTS = ("torch", "collections", "numpy", "_codecs", "builtins", "__builtin__")
"""Packages with classes that weights_only may accept; it decides which."""
_MODULES = "torch.nn.modules."
_SHOWN = 3


def check_suffix(uri: str) -> None:
    """Refuse code, and unknown kinds of files, by the name.

    Raises:
        JobError: The name is refused; says what it is and what to use instead.
    """
    suffix = PurePosixPath(uri.lower()).suffix
    if suffix in _BY_SUFFIX:
        raise _refusal(f"model.weights = {uri}", _BY_SUFFIX[suffix])
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
    if not size_bytes:
        raise _refusal(named, "is empty (0 bytes); copy it again")
    head = file.read(64)
    if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] != b"{":  # the length may be any bytes
        _refuse_foreign(named, head)
    is_torch = head.startswith(_ZIP) or _LEGACY_TORCH in head
    if named.endswith(".safetensors"):
        if is_torch:
            raise _refusal(named, "is a file of torch.save: let its name end in .pth")
        _check_safetensors(named, file, size_bytes)
    elif head.startswith(_ZIP):
        _check_archive(named, file, size_bytes)
    elif not is_torch:
        raise _refusal(named, _other(head))


def _refuse_foreign(named: str, head: bytes) -> None:
    for start, found in _BY_START:
        if head.startswith(start):
            raise _refusal(named, found)
    if head.lstrip().lower().startswith(_WEB):
        raise _refusal(named, "is a web page or XML, not weights: a download that went wrong?")


def _refusal(named: str, found: str) -> JobError:
    return JobError(f"{named}: {clean_message(found)}")


def _other(head: bytes) -> str:
    if head[_LENGTH_BYTES : _LENGTH_BYTES + 1] == b"{":
        return "holds safetensors: let its name end in .safetensors"
    if head[:1] == b"\x80":
        return f"{_PICKLE}; {SAVE}"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":  # ir_version, producer_name
        return f"{_ONNX} {SAVE}"
    return f"neither torch.save nor safetensors made it, or it is damaged; {SAVE}"


def _check_safetensors(named: str, file: BinaryIO, size_bytes: int) -> None:
    file.seek(0)
    length = int(struct.unpack("<Q", file.read(_LENGTH_BYTES).ljust(_LENGTH_BYTES, b"\0"))[0])
    if file.read(1) != b"{":
        raise _refusal(named, f"is no safetensors file, or it is damaged; {SAVE}")
    if length > _MAX_HEADER_BYTES:
        raise _refusal(named, f"its header claims {length} bytes, which no model needs: damaged?")
    if _LENGTH_BYTES + length > size_bytes:
        raise _refusal(
            named,
            f"is cut off: its header takes {length} bytes, the file has {size_bytes} bytes; "
            "copy it again",
        )
    file.seek(_LENGTH_BYTES)
    expected = _LENGTH_BYTES + length + _data_bytes(named, file.read(length))
    if size_bytes < expected:
        raise _refusal(
            named,
            f"is cut off: its header names {expected / 1e6:.1f} MB, the file has {size_bytes} "
            "bytes; copy it again",
        )
    if size_bytes > expected:
        raise _refusal(
            named, f"has {size_bytes - expected} bytes more than its header names; copy it again"
        )


def _data_bytes(named: str, header: bytes) -> int:
    """Return the bytes of all tensors according to a safetensors header."""
    try:
        entries = json.loads(header)
        ends = [_end(entry) for name, entry in entries.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise _refusal(named, f"its header is no list of tensors: damaged? {SAVE}") from None
    return max(ends, default=0)


def _end(entry: Any) -> int:
    start, end = entry["data_offsets"]
    if type(start) is not int or type(end) is not int or not 0 <= start <= end < 2**62:
        raise ValueError("offsets that cannot be")
    return end


def _check_archive(named: str, file: BinaryIO, size_bytes: int) -> None:
    """Check a zip archive: those of torch.save have `data.pkl` and no code."""
    file.seek(0)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        raise _refusal(
            named,
            f"is cut off or damaged: an archive of {size_bytes} bytes without its end; "
            "copy it again",
        ) from None
    with archive:
        inner = {name.partition("/")[2] or name: name for name in archive.namelist()}
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            raise _refusal(named, f"{_TORCHSCRIPT}; {SAVE}")
        if "archive_format" in inner or any("exported_program" in name for name in inner):
            raise _refusal(named, f"{_EXPORTED}; {SAVE}")
        if "model.weights.h5" in inner or "metadata.json" in inner:
            raise _refusal(named, f"{_KERAS} {SAVE}")
        if "data.pkl" not in inner:
            raise _refusal(named, f"is a zip archive that torch.save did not make; {SAVE}")
        _check_pickle(named, archive, inner["data.pkl"])


def _check_pickle(named: str, archive: zipfile.ZipFile, name: str) -> None:
    """Refuse classes that weights_only never accepts; it decides about all others."""
    try:
        with archive.open(name) as file:
            data = file.read(_MAX_PICKLE_BYTES + 1)
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        raise _refusal(
            named, "is damaged: its list of tensors cannot be read; copy it again"
        ) from None
    if len(data) > _MAX_PICKLE_BYTES:
        return
    foreign = list(dict.fromkeys(_foreign(data)))
    modules = [each for each in foreign if each.startswith(_MODULES)]
    if modules:
        others = [each for each in foreign if each not in modules] or modules
        raise _refusal(
            named,
            f"holds a whole module ({others[0]}), not a state dict, and loading that could run "
            f"code; {SAVE}",
        )
    if foreign:
        more = f" and {len(foreign) - _SHOWN} more" if len(foreign) > _SHOWN else ""
        raise _refusal(
            named,
            f"holds more than tensors ({', '.join(foreign[:_SHOWN])}{more}), and loading that "
            'could run code; save the tensors alone: torch.save(checkpoint["model"], "w.pth")',
        )


def _foreign(data: bytes) -> Iterator[str]:
    """Yield the classes in a pickle that no state dict can have; nothing is run."""
    try:
        for code, argument, _ in pickletools.genops(data):
            if code.name == "GLOBAL" and isinstance(argument, str):
                root = argument.partition(" ")[0].partition(".")[0]
                if root not in _PLAIN_ROOTS or argument.startswith(_MODULES):
                    yield argument.replace(" ", ".")
    except (ValueError, UnicodeError, IndexError, struct.error):
        return  # not a pickle: torch reports it
