"""What to make of a model's outputs: the columns of each task, and how they are filled.

`fields` runs on the driver and imports no torch; `reduce` runs on the device and keeps only what
is written; `columns` makes Arrow arrays of it. Schemas are declared by the job, never inferred.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.schema import CLASSIFY_FIELDS, EMBEDDING, LABEL, LABEL_ID, SCORE, TOP_K, VALUE
from pipeline.core.user_errors import failed
from pipeline.models.allowed_imports import import_callable

if TYPE_CHECKING:
    import torch

Arrays = dict[str, npt.NDArray[Any]]
Mask = npt.NDArray[np.bool_]
_LEAST_LENGTH = 1e-12
"""Of shorter vectors torch divides by this."""


class OutputError(ValueError):
    """The outputs are not what the job declares: no row is at fault."""


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

        logits = _require(
            outputs, (num_rows, len(self.spec.labels)), "model.labels {}", "logits, one per label"
        )
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
        told = "model.embedding_dim is {}", "one vector per row"
        vectors = _require(outputs, shape, *told).float()
        if self.spec.l2_norm:
            vectors = _normalised(vectors)
        return {EMBEDDING: vectors}

    def columns(self, arrays: Arrays, ok: Mask) -> dict[str, pa.Array]:
        return {EMBEDDING: _nested(arrays[EMBEDDING], ok)}


def _normalised(vectors: torch.Tensor) -> torch.Tensor:
    """Return vectors of length 1; where squares are beyond float32 they are scaled before.

    Zeros stay zeros, and what is not finite stays so.
    """
    import torch

    usual = torch.nn.functional.normalize(vectors, dim=1)
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    largest = vectors.abs().amax(dim=1, keepdim=True)
    scaled = torch.nn.functional.normalize(vectors / largest, dim=1)
    is_usual = (lengths.isfinite() & (lengths > _LEAST_LENGTH)) | (largest == 0)
    return torch.where(is_usual, usual, scaled)


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
        told = "model.targets has {}", "one number per target"
        values = _require(outputs, shape, *told).float()
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
                named[output.name],
                (num_rows, *output.shape),
                "",
                f"model.outputs {output.name}",
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
                found = ", ".join(sorted(map(str, outputs)))
                raise OutputError(
                    f"no output {missing[0]!r} (model.outputs); the model has {found}"
                )
            return outputs
        listed = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
        if listed and isinstance(listed[0], Mapping):
            raise OutputError(
                "the model returns a list with one dict per row, as detectors do; model.outputs "
                "needs tensors of one shape for all rows: pad them in a factory around the model"
            )
        if len(listed) < len(names):
            raise OutputError(
                f"the model has {len(listed)} outputs, model.outputs declares {len(names)}"
            )
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
        name = self.spec.postprocess or ""
        step, num_rows = load_postprocess(name), int(ok.sum())
        try:
            made = step({key: values[ok] for key, values in arrays.items()})
        except Exception as error:  # a user's code may raise anything
            raise JobError(failed("model.postprocess", name, error)) from error
        places = np.full(len(ok), -1)
        places[ok] = np.arange(num_rows)
        indices = pa.array(places, pa.int64(), mask=~ok)
        return {f.name: _made(name, made, f, num_rows).take(indices) for f in step.schema}


def _made(name: str, made: Any, field: pa.Field, num_rows: int) -> pa.Array:
    """Return a column that a post-processing step has made.

    Raises:
        JobError: It is not what the step's schema says.
    """
    told = f"model.postprocess {name}: column {field.name}"
    if not isinstance(made, Mapping) or field.name not in made:
        raise JobError(f"{told} is not in what the call returned ({_kind_of(made)})")
    try:
        values = pa.array(made[field.name], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{told} is to be {field.type}: {error}") from error
    if len(values) != num_rows:
        raise JobError(f"{told} has {len(values)} values for {num_rows} rows")
    return values


def _kind_of(made: Any) -> str:
    return ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__


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
    contract = (
        f"model.postprocess = {factory!r}: is called without arguments and must return an object "
        "with .schema (pyarrow) and __call__(outputs); see README, Postprocess"
    )
    build = import_callable("model.postprocess", factory)
    needed = needed_arguments(build)
    if needed:
        raise JobError(f"{contract}; it needs {', '.join(needed)}")
    try:
        step = build()
    except Exception as error:  # a user's code may raise anything
        raise JobError(failed("model.postprocess", factory, error)) from error
    if not isinstance(getattr(step, "schema", None), pa.Schema) or not callable(step):
        raise JobError(f"{contract}; it returned a {type(step).__name__}")
    return step  # type: ignore[no-any-return]  # checked above


def needed_arguments(function: Callable[..., Any]) -> list[str]:
    """Name the parameters without which a function cannot be called; none where it is unknown."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # some built-in functions do not say
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _require(output: Any, shape: tuple[int, ...], declared: str, what: str) -> torch.Tensor:
    """Check the shape of an output.

    Args:
        output: Of the model.
        shape: As it is to be.
        declared: What the job says of its last dimension, with a place for the number.
        what: It is.

    Raises:
        OutputError: It is something else.
    """
    import torch

    if not isinstance(output, torch.Tensor):
        raise OutputError(f"output is a {type(output).__name__}, expected a tensor {shape}: {what}")
    found = tuple(output.shape)
    if found != shape:
        if declared and found[:-1] == shape[:-1]:
            what = f"the model has {found[-1]} outputs, {declared.format(shape[-1])}"
        raise OutputError(f"output is {found}, expected {shape}: {what}")
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


def measured_columns(task: TaskSpec) -> tuple[str, ...]:
    """Name the columns of a task whose numbers are counted; none of task `raw`."""
    if task.kind == "classify":
        return (SCORE,)
    if task.kind == "embed":
        return (EMBEDDING,)
    return (task.targets or (VALUE,)) if task.kind == "regress" else ()
