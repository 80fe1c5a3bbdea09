"""What to make of a model's outputs: the columns of each task, and how they are filled.

`fields` runs on the driver and imports no torch; `reduce` runs on the device and keeps only what
is written; `columns` makes Arrow arrays of it. Schemas are declared by the job, never inferred.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import JobError
from pipeline.imports import import_callable
from pipeline.schema import CLASSIFY_FIELDS, LABEL, LABEL_ID, SCORE, TOP_K

if TYPE_CHECKING:
    import torch

Arrays = dict[str, npt.NDArray[Any]]
Mask = npt.NDArray[np.bool_]
EMBEDDING, VALUE, OUTPUT = "embedding", "value", "output"


@dataclass(frozen=True)
class OutputSpec:
    """One named output of a model: its shape without the batch dimension."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TaskSpec:
    """The job's wishes, plain enough for JSON."""

    kind: Literal["classify", "embed", "raw", "regress"]
    labels: tuple[str, ...] = ()
    top_k: int = 1
    embedding_dim: int = 0
    l2_norm: bool = False
    outputs: tuple[OutputSpec, ...] = ()
    targets: tuple[str, ...] = ()
    postprocess: str | None = None
    postprocess_sha256: str = ""
    """Digest of the source of the post-processing module."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for fingerprints and manifests; labels as a digest."""
        values = asdict(self)
        labels = values.pop("labels")
        values["num_labels"] = len(labels)
        values["labels_sha256"] = hashlib.sha256("\n".join(labels).encode()).hexdigest()
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


class Task(Protocol):
    """How one task turns outputs into columns."""

    def fields(self) -> list[pa.Field]:
        """Return the columns that the task adds."""
        ...

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Check the outputs of a batch and keep what is written, each (B, ...).

        Raises:
            ValueError: The outputs have not the declared shape; names both.
        """
        ...

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        """Make the task's columns for the rows of a slice; rows that are not ok are null."""
        ...


def make_task(spec: TaskSpec) -> Task:
    """Return the task of a spec."""
    if spec.kind == "classify":
        return _Classify(spec)
    if spec.kind == "embed":
        return _Embed(spec)
    if spec.kind == "regress":
        return _Regress(spec)
    return _Postprocessed(spec) if spec.postprocess else _Raw(spec)


@dataclass(frozen=True)
class _Classify:
    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return list(CLASSIFY_FIELDS)

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        logits = _require(outputs, (num_rows, len(self.spec.labels)), "logits, one per label")
        top = torch.softmax(logits.float(), dim=1).topk(self.spec.top_k, dim=1)
        return {SCORE: top.values, LABEL_ID: top.indices.to(torch.int32)}

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        names = pa.array(self.spec.labels, pa.string())
        scores, ids = arrays[SCORE], arrays[LABEL_ID]
        num_rows, top_k = ids.shape
        flat = pa.array(ids.reshape(-1))
        entries = pa.StructArray.from_arrays(
            [names.take(flat), flat, pa.array(scores.reshape(-1))], names=[LABEL, LABEL_ID, SCORE]
        )
        offsets = np.arange(0, (num_rows + 1) * top_k, top_k, dtype=np.int32)
        best = pa.array(np.ascontiguousarray(ids[:, 0]), mask=~ok)
        return {
            LABEL: names.take(best),
            LABEL_ID: best,
            SCORE: pa.array(np.ascontiguousarray(scores[:, 0]), mask=~ok),
            TOP_K: pa.ListArray.from_arrays(pa.array(offsets), entries, mask=pa.array(~ok)),
        }


@dataclass(frozen=True)
class _Embed:
    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return [pa.field(EMBEDDING, pa.list_(pa.float32(), self.spec.embedding_dim))]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim > 2:
            outputs = outputs.flatten(1)  # a pooled layer ends in (B, D, 1, 1)
        shape = (num_rows, self.spec.embedding_dim)
        vectors = _require(outputs, shape, "one vector a row (model.embedding_dim)").float()
        if self.spec.l2_norm:
            vectors = torch.nn.functional.normalize(vectors, dim=1)
        return {EMBEDDING: vectors}

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        return {EMBEDDING: _nested(arrays[EMBEDDING], ok)}


@dataclass(frozen=True)
class _Regress:
    spec: TaskSpec

    def _names(self) -> tuple[str, ...]:
        return self.spec.targets or (VALUE,)

    def fields(self) -> list[pa.Field]:
        return [pa.field(name, pa.float32()) for name in self._names()]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        if isinstance(outputs, torch.Tensor) and outputs.ndim == 1:
            outputs = outputs[:, None]
        shape = (num_rows, len(self._names()))
        values = _require(outputs, shape, "one number a target (model.targets)").float()
        return {VALUE: values}

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        values = arrays[VALUE]
        return {
            name: pa.array(np.ascontiguousarray(values[:, i]), mask=~ok)
            for i, name in enumerate(self._names())
        }


@dataclass(frozen=True)
class _Raw:
    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return [pa.field(output.name, _nested_type(output.shape)) for output in self.spec.outputs]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        named = self._by_name(outputs)
        return {
            output.name: _require(
                named[output.name], (num_rows, *output.shape), f"model.outputs {output.name}"
            ).float()
            for output in self.spec.outputs
        }

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        return {output.name: _nested(arrays[output.name], ok) for output in self.spec.outputs}

    def _by_name(self, outputs: Any) -> Mapping[str, Any]:
        """Match outputs to declared names: by key of a dict, else by position."""
        names = [output.name for output in self.spec.outputs]
        if isinstance(outputs, Mapping):
            missing = [name for name in names if name not in outputs]
            if missing:
                raise ValueError(f"no output {missing[0]!r}; the model gives {sorted(outputs)}")
            return outputs
        listed = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        if len(listed) < len(names):
            raise ValueError(f"{len(listed)} outputs, model.outputs declares {len(names)}")
        return dict(zip(names, listed, strict=False))


@dataclass(frozen=True)
class _Postprocessed:
    """Raw outputs, turned into columns by the user's own code with a declared schema."""

    spec: TaskSpec

    def fields(self) -> list[pa.Field]:
        return list(load_postprocess(self.spec.postprocess or "").schema)

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        return _Raw(self.spec).reduce(outputs, num_rows)

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        step = load_postprocess(self.spec.postprocess or "")
        made = step({name: values[ok] for name, values in arrays.items()})
        places = np.full(len(ok), -1)
        places[ok] = np.arange(int(ok.sum()))
        indices = pa.array(places, pa.int64(), mask=~ok)
        columns = {}
        for field in step.schema:
            values = pa.array(made[field.name], field.type)
            if len(values) != int(ok.sum()):
                raise JobError(
                    f"{self.spec.postprocess}: column {field.name} has {len(values)} values for "
                    f"{int(ok.sum())} rows"
                )
            columns[field.name] = values.take(indices)
        return columns


class Postprocess(Protocol):
    """What a `model.postprocess` factory returns."""

    schema: pa.Schema

    def __call__(self, outputs: Arrays) -> Mapping[str, Sequence[Any] | pa.Array]:
        """Turn the raw outputs of some rows, each (N, ...), into columns of N values."""
        ...


def load_postprocess(factory: str) -> Postprocess:
    """Import and call a post-processing factory (whose module the caller has allowed).

    Raises:
        JobError: It cannot be imported, or has no Arrow schema.
    """
    step = import_callable("model.postprocess", factory)()
    if not isinstance(getattr(step, "schema", None), pa.Schema) or not callable(step):
        raise JobError(f"model.postprocess = {factory!r}: needs a `schema` (pyarrow) and a call")
    return step  # type: ignore[no-any-return]  # checked above


def _require(output: Any, shape: tuple[int, ...], what: str) -> torch.Tensor:
    import torch

    if not isinstance(output, torch.Tensor) or tuple(output.shape) != shape:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"output is {found}, expected {shape}: {what}")
    return output


def _nested_type(shape: tuple[int, ...]) -> pa.DataType:
    kind = pa.float32()
    for size in reversed(shape):
        kind = pa.list_(kind, size)
    return kind


def _nested(values: npt.NDArray[Any], ok: Mask) -> pa.Array:
    """Turn (N, a, b, ...) into fixed-size lists of fixed-size lists; rows not ok are null."""
    shape = values.shape[1:]
    array = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    if not shape:
        return pa.array(np.ascontiguousarray(values, dtype=np.float32), mask=~ok)
    for size in reversed(shape[1:]):
        array = pa.FixedSizeListArray.from_arrays(array, size)
    assert len(array) == math.prod(shape[:1]) * len(values), "shapes multiply out"
    return pa.FixedSizeListArray.from_arrays(array, shape[0], mask=pa.array(~ok))
