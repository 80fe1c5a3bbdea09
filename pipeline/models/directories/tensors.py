"""The safetensors of a local model directory: names, shapes and tensors, checked strictly.

A header that does not fit its file, a shard that the index does not name, and tensors that are not
numbers of a model are refused before anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.json_files import read_object
from pipeline.models.weights.state_dict import first_names
from pipeline.models.weights.weights_file import fault_of_download, has_header

if TYPE_CHECKING:
    import torch

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "F16", "BF16", "F64")
_WHOLE = ("I64", "I32")
"""Buffers such as position_ids; no weights."""
_SPARE = 64 << 20
"""Numbers that a model may have beyond twice those of its files."""
_LENGTH_BYTES, _MAX_HEADER_BYTES = 8, 8 << 20
"""A header of this length has 100,000 tensors, more than any model's file; what is made of it takes
thirty times as much memory."""


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header of its file describes it."""

    file: str
    shape: tuple[int, ...]
    is_float: bool

    @property
    def num_values(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)


def shards_of(index: Mapping[str, object]) -> dict[str, str]:
    """Return tensor -> file of an index; files lie beside it.

    Raises:
        JobError: The index names a file elsewhere, or one that is no safetensors.
    """
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise JobError(f"model.path: {INDEX} has no weight_map of tensors and files")
    for file in set(map(str, named.values())):
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise JobError(
                f"model.path: {INDEX} names {clean_message(file)!r}, expected a .safetensors file "
                "beside it"
            )
    return {str(name): str(file) for name, file in named.items()}


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of a folder's weights: tensor name -> what it is.

    Raises:
        JobError: A file is damaged, or differs from the index, or holds tensors of other types.
    """
    if not (folder / INDEX).is_file():
        return _header(folder, SINGLE)
    named = shards_of(read_object(folder, INDEX))
    headers: dict[str, TensorHeader] = {}
    for file in sorted(set(named.values())):
        headers.update(_header(folder, file))
    _require_equal(named, {name: header.file for name, header in headers.items()})
    return headers


def _require_equal(named: Mapping[str, str], files: Mapping[str, str]) -> None:
    other = sorted(
        name for name in named.keys() | files.keys() if named.get(name) != files.get(name)
    )
    if other:
        raise JobError(
            f"model.path: {INDEX} and its files differ: {first_names(other)}; copy the directory "
            "again"
        )


def _header(folder: Path, name: str) -> dict[str, TensorHeader]:
    from safetensors import SafetensorError, safe_open

    path = folder / name
    _check(path)
    try:
        with safe_open(path, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  # no dict
            dtypes = {key: str(tensor.get_dtype()) for key, tensor in slices.items()}
            shapes = {key: tuple(tensor.get_shape()) for key, tensor in slices.items()}
    except SafetensorError as error:
        reason = clean_message(str(error), 120)
        raise JobError(
            f"model.path: {name} is damaged or cut off: {reason}; copy it again"
        ) from None
    other = sorted(key for key, dtype in dtypes.items() if dtype not in (*_FLOATS, *_WHOLE))
    if other:
        raise JobError(
            f"model.path: {name} holds tensors of type {dtypes[other[0]]} ({first_names(other)}): "
            "quantised weights are not read; take the float weights of this model"
        )
    return {key: TensorHeader(name, shapes[key], dtypes[key] in _FLOATS) for key in shapes}


def _check(path: Path) -> None:
    """Refuse a file that is no safetensors, or whose header is larger than any model's."""
    with path.open("rb") as file:
        head = file.read(64)
    fault = fault_of_download(head)
    if fault is None and not has_header(head):
        fault = "is no safetensors file, or it is damaged: copy it again"
        if head.startswith((b"\x80", b"PK\x03\x04")):
            fault = (
                "is a pickle under another name, which can run code when it is loaded; save the "
                "weights with the library: save_pretrained(NEW)"
            )
    length = int.from_bytes(head[:_LENGTH_BYTES], "little")
    if fault is None and length > _MAX_HEADER_BYTES:
        fault = (
            f"has a header of {length} bytes, at most {_MAX_HEADER_BYTES} can be: damaged? Copy it "
            "again"
        )
    if fault is not None:
        raise JobError(f"model.path: {path.name} {fault}")


def read_tensors(folder: Path, headers: Mapping[str, TensorHeader]) -> dict[str, torch.Tensor]:
    """Map the tensors of a folder's weights, by name; pages are read when they are used."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    with ExitStack() as stack:
        for file in sorted({header.file for header in headers.values()}):
            opened = stack.enter_context(safe_open(folder / file, framework="pt"))
            names = [name for name, header in headers.items() if header.file == file]
            tensors.update({name: opened.get_tensor(name) for name in names})
    return tensors


def repeating_tensors(headers: Mapping[str, TensorHeader]) -> dict[str, torch.Tensor]:
    """Return tensors of these shapes that take no memory: each repeats one number."""
    import torch

    dtypes = {True: torch.float32, False: torch.int64}
    return {
        name: torch.zeros((), dtype=dtypes[header.is_float]).expand(header.shape)
        for name, header in headers.items()
    }


def require_size(module: torch.nn.Module, headers: Mapping[str, TensorHeader], where: str) -> None:
    """Refuse a module that is much larger than the files, before it takes memory.

    Args:
        module: On the device `meta`.
        headers: The tensors of the files.
        where: What describes the module.

    Raises:
        JobError: It is; names both numbers.
    """
    held = sum(header.num_values for header in headers.values())
    needed = sum(tensor.numel() for tensor in {*module.parameters(), *module.buffers()})
    # Tensors that are missing are named later; buffers may be computed.
    if needed > 2 * held + _SPARE:
        raise JobError(
            f"model.path: {where} describes {needed} numbers, the safetensors hold {held}: they "
            "are not of the same model"
        )
