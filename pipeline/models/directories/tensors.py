"""Read headers and tensors of a model directory's safetensors, with limits.

A file that is another format, or whose header is larger than any model's, is refused before
anything is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message, first_names
from pipeline.models.directories.files import INDEX, QUANTISED, SINGLE, read_object
from pipeline.models.weights.weights import fault_of_download, has_header

if TYPE_CHECKING:
    import torch

_FLOATS, _WHOLE = ("F32", "F16", "BF16", "F64"), ("I64", "I32")
_SPARE = 64 << 20
"""Numbers that a model may have beyond twice those of its files."""
_HEAD_BYTES, _LENGTH_BYTES, _MAX_HEADER_BYTES = 64, 8, 8 << 20
"""A header of this length has 100,000 tensors, more than any model's file, and takes thirty times
as much memory once it is parsed."""


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header of its file describes it."""

    file: str
    shape: tuple[int, ...]
    dtype: str
    """As safetensors has it, such as `BF16`."""

    @property
    def num_values(self) -> int:
        """Return how many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_number(self) -> bool:
        """Tell whether a model computes with it: it is neither a mask nor quantised."""
        return self.dtype in (*_FLOATS, *_WHOLE)


def shards_of(index: Mapping[str, object]) -> set[str]:
    """Return the files that an index names; they lie beside it.

    Raises:
        JobError: The index names a file elsewhere, or one that is no safetensors.
    """
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named:
        raise JobError(f"model.path: {INDEX} has no weight_map of tensors and files")
    files = set(map(str, named.values()))
    for file in files:
        if "/" in file or "\\" in file or not file.endswith(".safetensors"):
            raise JobError(
                f"model.path: {INDEX} names {clean_message(file)!r}, expected a .safetensors file "
                "beside it"
            )
    return files


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of the weights that a library loads: tensor name -> what it is.

    Raises:
        JobError: A file is damaged.
    """
    is_whole = (folder / SINGLE).is_file()
    headers: dict[str, TensorHeader] = {}
    for file in [SINGLE] if is_whole else sorted(shards_of(read_object(folder, INDEX))):
        headers.update(_header(folder, file))
    return headers


def _header(folder: Path, name: str) -> dict[str, TensorHeader]:
    from safetensors import SafetensorError, safe_open

    with (folder / name).open("rb") as file:
        head = file.read(_HEAD_BYTES)
    fault, length = fault_of_download(head), int.from_bytes(head[:_LENGTH_BYTES], "little")
    if fault is None and has_header(head) and length > _MAX_HEADER_BYTES:
        fault = f"has a header of {length} bytes, at most {_MAX_HEADER_BYTES} can be; copy it again"
    if fault is not None:
        raise JobError(f"model.path: {name} {fault}")
    try:
        with safe_open(folder / name, framework="pt") as opened:
            slices = {key: opened.get_slice(key) for key in opened.keys()}  # noqa: SIM118  # no dict
            return {
                key: TensorHeader(name, tuple(part.get_shape()), str(part.get_dtype()))
                for key, part in slices.items()
            }
    except SafetensorError as error:
        reason = clean_message(str(error), 120)
        raise JobError(
            f"model.path: {name} is damaged, cut off or no safetensors: {reason}; copy it again, "
            "or save the weights with their library: save_pretrained(NEW)"
        ) from None


def require_numbers(headers: Mapping[str, TensorHeader]) -> None:
    """Refuse quantised weights.

    Raises:
        JobError: A tensor is of another type than floats and whole numbers; names it.
    """
    others = sorted(name for name, header in headers.items() if not header.is_number)
    if others:
        header = headers[others[0]]
        raise JobError(
            f"model.path: {header.file} holds tensors of type {header.dtype} "
            f"({first_names(others)}): {QUANTISED}"
        )


def read_tensors(folder: Path, headers: Mapping[str, TensorHeader]) -> dict[str, torch.Tensor]:
    """Map the tensors of a folder's weights, by name; pages are read when they are used.

    Raises:
        JobError: One is quantised.
    """
    from safetensors.torch import load_file

    require_numbers(headers)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted({header.file for header in headers.values()}):
        tensors.update(load_file(folder / file))
    return tensors


def meta_tensors(headers: Mapping[str, TensorHeader]) -> dict[str, torch.Tensor]:
    """Return tensors of these shapes without numbers, which stay so whatever a library does.

    transformers moves each tensor that it loads to the CPU, which one of the device `meta` cannot
    follow: these take no notice.
    """
    import torch

    class Shape(torch.Tensor):
        @classmethod
        def __torch_function__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.Tensor.to:
                kwargs = {"dtype": (kwargs or {}).get("dtype") or args[0].dtype}
                args = args[:1]
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]

    dtypes = {True: torch.float32, False: torch.int64}
    return {
        name: torch.empty(
            header.shape, dtype=dtypes[header.dtype in _FLOATS], device="meta"
        ).as_subclass(Shape)
        for name, header in headers.items()
    }


def require_size(module: torch.nn.Module, headers: Mapping[str, TensorHeader], where: str) -> None:
    """Refuse a module that is much larger than the files, before it takes memory.

    Args:
        module: On the device `meta`.
        where: What describes the module.

    Raises:
        JobError: It is; names both numbers.
    """
    packed = {"I32": 8}  # numbers of four bits
    held = sum(header.num_values * packed.get(header.dtype, 1) for header in headers.values())
    needed = sum(tensor.numel() for tensor in {*module.parameters(), *module.buffers()})
    # Tensors that are missing are named later; buffers may be computed.
    if needed > 2 * held + _SPARE:
        raise JobError(
            f"model.path: {where} describes {needed} numbers, the safetensors hold {held}: they "
            "are not of the same model"
        )
