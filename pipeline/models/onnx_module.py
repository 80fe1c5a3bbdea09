"""An .onnx file as a module, whatever library runs the file.

By itself it runs the file with onnxruntime in float32 without optimisation of the graph: that is
the reference. A runtime that runs the file another way gives its own engine to `open`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from pipeline.models.directories.facts import OnnxFile
from pipeline.models.directories.onnx.graph import external_files, open_session, parse_onnx
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts, runnable
from pipeline.models.tasks import task_class
from pipeline.preprocessing.model_input import TEXT
from pipeline.preprocessing.table_input import texts_of
from pipeline.preprocessing.texts.text_settings import IDS, MASK, TYPES

Feeds = dict[str, npt.NDArray[Any]]
"""Name of an input of the file -> C-contiguous (B, ...), of its dtype."""
Engine = Callable[[Feeds], Sequence[npt.NDArray[Any]]]
"""Runs the file: arrays by name -> the outputs that `output_names` has, in that order."""
DeviceEngine = Callable[[Mapping[str, torch.Tensor]], Sequence[torch.Tensor]]
"""The same on a GPU, whose tensors it takes and gives."""
_DIGEST = "sha256"
_READ_BYTES = 1 << 20


class OnnxModule(torch.nn.Module):
    """One .onnx file. It has no parameters and can be pickled; the file itself stays where it is.

    `forward` takes the tensors of a batch, (B, ...) each, by the names of the file's inputs or in
    their order; images are (B, C, H, W) whatever the file wants. It returns one output as a tensor,
    or several as name -> tensor, on the device of the inputs. If the file takes a fixed number of
    rows, batches are cut and padded to it. Token types that are not given are zeros.
    """

    def __init__(
        self,
        path: Path,
        facts: OnnxFile,
        *,
        outputs: Sequence[str] | None = None,
        pooled: torch.nn.Module | None = None,
    ) -> None:
        """Wrap a file; nothing is opened yet.

        Args:
            path: The file, as `read_onnx_facts` has accepted it.
            outputs: The outputs to return, by their names; None: all of them.
            pooled: Takes vectors of tokens (B, L, D) and the mask (B, L), and returns (B, D), which
                is returned instead of the only output.
        """
        super().__init__()
        self.pooled = pooled
        self.path = path
        self.input_names = tuple(tensor.name for tensor in facts.inputs)
        self.output_names = tuple(facts.output_names if outputs is None else outputs)
        self.optional_names = (TYPES,)
        self.is_fixed = facts.batch_size is not None
        """Whether the file takes one number of rows only."""
        self._facts = facts
        self._dtypes = {tensor.name: tensor.dtype for tensor in facts.inputs}
        self._flat = {tensor.name for tensor in facts.inputs if tensor.rank == 1}
        self._engine: Engine | None = None
        self._device_engine: DeviceEngine | None = None

    @classmethod
    def of(cls, path: str | Path, outputs: Sequence[str] | None = None) -> Self:
        """Wrap a file for a factory of one's own; its digest becomes a buffer of the module.

        Its inputs may be any tensors with a row in axis 0.

        Raises:
            JobError: The file is refused; see `read_onnx_facts`.
        """
        facts = read_onnx_facts(Path(path), takes_any=True).module
        assert isinstance(facts, OnnxFile), "it is a file"
        module = cls(Path(path), facts, outputs=outputs)
        # Two actors with different files differ in it, as by the tensors of any other module.
        digest = torch.frombuffer(bytearray(_digest(Path(path))), dtype=torch.uint8)
        module.register_buffer(_DIGEST, digest)
        return module

    @classmethod
    def for_task(
        cls, path: Path, facts: OnnxFile, task: str, pooled: torch.nn.Module | None = None
    ) -> Self:
        """Wrap a file for a task: some take all outputs, the others the scores or the vector."""
        if task_class(task).takes_all_outputs:
            return cls(path, facts)
        return cls(path, facts, outputs=[facts.output], pooled=pooled)

    @property
    def has_columns(self) -> bool:
        """Whether it takes columns of a table, which may be strings and thus stay on the host."""
        return self._facts.has_columns

    def source(self) -> str | bytes:
        """Return what a library opens: the path of the file, or its bytes without a ZipMap."""
        return runnable(self.path) if self._facts.zipped else str(self.path)

    def fixed_shapes(self, batch: Sequence[int]) -> dict[str, list[int]] | None:
        """Return the shapes that the file's inputs have in every batch; None if they differ.

        Args:
            batch: The shape of the first tensor of a batch: (B, H, W, C), (B, F) or (B, L).
        """
        num_rows = self._facts.batch_size or batch[0]
        shapes = {tensor.name: tensor.shape or (None, None) for tensor in self._facts.inputs}
        if IDS in shapes and self._facts.max_tokens is None:
            return None
        layout = self._facts.layout
        # Axes of images are named in the file's order; other axes have one length.
        lengths = dict(zip("NHWC", batch, strict=True)) if layout else {}
        others = [lengths[axis] for axis in layout[1:]] if layout else [batch[1]] * len(batch)
        return {
            name: [
                num_rows,
                *(
                    axis if isinstance(axis, int) else other
                    for axis, other in zip(shape[1:], others, strict=False)
                ),
            ]
            for name, shape in shapes.items()
        }

    def open(self, engine: Engine | None = None) -> None:
        """Open the file now, with another engine than the reference if one is given.

        Raises:
            Exception: Of the library, as it is.
        """
        if engine is None:
            session = open_session(self.source(), torch.get_num_threads())
            engine = partial(session.run, list(self.output_names))
        self._engine = engine

    def open_on_device(self, engine: DeviceEngine) -> None:
        """Open the file with an engine that takes tensors where they are."""
        self._device_engine = engine

    def feeds(self, tensors: Mapping[str, torch.Tensor]) -> Feeds:
        """Return tensors as the file takes them: dtype, order of axes, length of padded texts."""
        if self.has_columns:
            return {
                n: self._column(n, tensor.detach().cpu().numpy()) for n, tensor in tensors.items()
            }
        return {name: tensor.cpu().numpy() for name, tensor in self._fed(tensors).items()}

    def _fed(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return tensors as `feeds` does, on their device."""
        fed = {}
        for name, tensor in tensors.items():
            values = tensor.detach()
            if self._facts.layout == "NHWC":
                values = values.permute(0, 2, 3, 1)
            values = values.to(getattr(torch, self._dtypes[name]))
            if (wanted := self._facts.max_tokens) is not None:
                missing = max(0, wanted - values.shape[1])
                values = torch.nn.functional.pad(values, (0, missing))
            fed[name] = values.contiguous()
        return fed

    def _column(self, name: str, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a column as the file takes it, (B, 1) or (B), of its type.

        Raises:
            ValueError: A number is none of that type.
        """
        if self._dtypes[name] == TEXT:
            column: npt.NDArray[Any] = texts_of(values)
        else:
            dtype = np.dtype(self._dtypes[name])
            numbers = values.reshape(-1)
            with np.errstate(invalid="ignore"):
                column = numbers.astype(dtype)
            others = numbers[column != numbers] if dtype.kind in "iub" else numbers[:0]
            if len(others):
                raise ValueError(f"input {name!r} takes {dtype}, and a row has {others[0]:g}")
        return column if name in self._flat else column.reshape(-1, 1)

    def forward(self, *tensors: torch.Tensor, **named: torch.Tensor) -> Any:
        """Return the outputs of a batch.

        Raises:
            TypeError: A tensor is missing, or there is one that the file does not have.
            Exception: Of the library, as it is.
        """
        given = {**dict(zip(self.input_names, tensors, strict=False)), **named}
        num_given = len(tensors) + len(named)
        if TYPES in self.input_names and TYPES not in given and IDS in given:
            given[TYPES], num_given = torch.zeros_like(given[IDS]), num_given + 1
        if set(given) != set(self.input_names) or len(given) != num_given:
            raise TypeError(
                f"{self.path.name} takes {', '.join(self.input_names)}; it is given "
                f"{len(tensors)} tensors by position and {', '.join(named) or 'none'} by name"
            )
        first = next(iter(given.values()))
        if self._device_engine is not None:
            outputs = self._run(self._device_engine, self._fed(given), len(first), torch.cat)
        else:
            if self._engine is None:
                self.open()
            arrays = self._run(self._engine, self.feeds(given), len(first), np.concatenate)
            outputs = [torch.from_numpy(array).to(first.device) for array in arrays]
        if self._facts.max_tokens is not None:
            outputs = [self._cut(output, first.shape[1]) for output in outputs]
        if self.pooled is not None:
            return self.pool(outputs[0], given.get(MASK, torch.ones_like(first)))
        if len(outputs) == 1:
            return outputs[0]
        return dict(zip(self.output_names, outputs, strict=True))

    def pool(self, vectors: torch.Tensor, mask: torch.Tensor) -> Any:
        """Return (B, D) of the vectors of tokens (B, L, D) that the mask (B, L) lets take part."""
        assert self.pooled is not None, "the task takes one vector"
        return self.pooled(SimpleNamespace(last_hidden_state=vectors.float()), mask)

    def _run(self, engine: Any, fed: Any, num_rows: int, join: Callable[[Any], Any]) -> list[Any]:
        """Run B rows; in pieces, padded with the rows of the batch, if the file wants a number."""
        size = self._facts.batch_size or num_rows
        if size == num_rows:
            return list(engine(fed))
        starts = range(0, num_rows, size)
        rows = [[row % num_rows for row in range(start, start + size)] for start in starts]
        pieces = [engine({name: values[part] for name, values in fed.items()}) for part in rows]
        return [join(parts)[:num_rows] for parts in zip(*pieces, strict=True)]

    def _cut(self, output: torch.Tensor, num_tokens: int) -> torch.Tensor:
        """Take the padding of the token ids off an output per token, (B, L, ...)."""
        is_per_token = output.ndim > 2 and output.shape[1] == self._facts.max_tokens
        return output[:, :num_tokens] if is_per_token else output

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None, "_device_engine": None}


def _digest(path: Path) -> bytes:
    """Return the SHA-256 digest of a file and its external data."""
    digest = hashlib.sha256()
    for part in (path, *(path.parent / name for name in external_files(parse_onnx(path)))):
        digest.update(f"{part.name} {part.stat().st_size} ".encode())
        with part.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    return digest.digest()
