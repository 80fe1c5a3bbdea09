"""Task `raw`: the declared outputs as columns, or the columns that post-processing makes.

Post-processing is the user's own code. For task `detect` it turns raw outputs into boxes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.schema import NUM_TOKENS, file_name_of
from pipeline.core.user_code import check_arguments, failed, import_callable
from pipeline.models.agreement import Agreement, AgreementLimits, compare_numbers
from pipeline.models.outputs import (
    OutputError,
    OutputSpec,
    nested,
    nested_type,
    places_of,
    require,
)
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model

_COUNT = "_frames"
"""End of the name of a result that has the number of frames of another one."""


@dataclass(frozen=True)
class Raw(Task):
    """The outputs that the job declares."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("outputs", "postprocess", "postprocess_args")
    serves: ClassVar[tuple[str, ...]] = ("segmentation",)
    takes_all_outputs: ClassVar[bool] = True
    has_golden: ClassVar[bool] = False

    @classmethod
    def needs_places(cls, model: Model) -> bool:
        return model.postprocess is not None

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        if not model.outputs and model.path is None:
            yield "task 'raw' needs outputs, each with a name and a shape"

    def fields(self) -> list[pa.Field]:
        if self.spec.postprocess is not None:
            return list(self._step.schema)
        return [pa.field(output.name, nested_type(output.shape)) for output in self.spec.outputs]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        import torch

        named = self._by_name(outputs)
        results = {
            output.name: require(
                named[output.name],
                (num_rows, *_shape(output, named[output.name])),
                "",
                f"model.outputs {output.name}",
            ).float()
            for output in self.spec.outputs
        }
        # The clips of a batch have one length.
        counts = {
            name + _COUNT: torch.full((num_rows,), values.shape[1], device=values.device)
            for name, values in results.items()
            if name in self._of_frames
        }
        return results | counts

    @property
    def _of_frames(self) -> list[str]:
        return [output.name for output in self.spec.outputs if output.is_of_frames]

    def is_of_tokens(self, name: str) -> bool:
        return any(output.is_of_tokens for output in self.spec.outputs if output.name == name)

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        if self.spec.postprocess is not None:
            return postprocessed(self.spec.postprocess, self._step, arrays, ok, rows)
        made = {}
        for output in self.spec.outputs:
            name, values = output.name, arrays[output.name]
            if output.is_of_tokens:
                made[name] = places_of(values, ok, rows.column(NUM_TOKENS).fill_null(0).to_numpy())
            elif output.is_of_frames:
                made[name] = places_of(values, ok, arrays[name + _COUNT])
            else:
                made[name] = nested(values, ok)
        return made

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare all numbers; behind the last token or frame of a row are zeros."""
        names = [name for name in reference if self.is_of_tokens(name) or name in self._of_frames]
        for name in names:
            sides = reference[name], candidate[name]
            length = max(values.shape[1] for values in sides)
            longer = [_padded(values, length) for values in sides]
            reference, candidate = {**reference, name: longer[0]}, {**candidate, name: longer[1]}
        return compare_numbers(reference, candidate, limits)

    @cached_property
    def _step(self) -> Postprocess:
        assert self.spec.postprocess is not None, "callers check it"
        return load_postprocess(self.spec.postprocess, self.spec.postprocess_args)

    def _by_name(self, outputs: Any) -> Mapping[str, Any]:
        """Match outputs to declared names: by key of a dict, otherwise by position."""
        names = [output.name for output in self.spec.outputs]
        if isinstance(outputs, Mapping):
            missing = [name for name in names if name not in outputs]
            if missing:
                available = ", ".join(sorted(map(str, outputs)))
                raise OutputError(
                    f"no output {missing[0]!r} (model.outputs); the model has {available}"
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


def _padded(values: npt.NDArray[Any], length: int) -> npt.NDArray[Any]:
    """Return (N, length, ...) of (N, L, ...), with zeros."""
    return np.pad(values, [(0, 0), (0, length - values.shape[1])] + [(0, 0)] * (values.ndim - 2))


def _shape(output: OutputSpec, actual: Any) -> tuple[int, ...]:
    """Return the shape that an output is to have for a row of this batch."""
    if (output.is_of_tokens or output.is_of_frames) and getattr(actual, "ndim", 0) > 1:
        return (actual.shape[1], *output.shape[1:])
    return output.shape


def postprocessed(
    factory: str, step: Postprocess, arrays: Arrays, ok: Mask, rows: pa.Table
) -> dict[str, pa.Array]:
    """Make the declared columns (N,) of raw outputs, each (N, ...); null for rows that are not ok.

    Args:
        rows: The N prepared rows, whose columns in `step.reads` the step gets beside the outputs.

    Raises:
        JobError: The step raises, reads a column that rows lack, or gives other columns than it
            declares.
    """
    num_rows = int(ok.sum())
    given = [
        {key: values[ok] for key, values in arrays.items()},
        *_read_by(factory, step, ok, rows),
    ]
    try:
        made = step(*given)
    except Exception as error:  # a user's code may raise anything
        raise JobError(failed("model.postprocess", factory, error)) from error
    places = np.full(len(ok), -1)
    places[ok] = np.arange(num_rows)
    indices = pa.array(places, pa.int64(), mask=~ok)
    return {f.name: _made(factory, made, f, num_rows).take(indices) for f in step.schema}


def _read_by(factory: str, step: Postprocess, ok: Mask, rows: pa.Table) -> list[pa.Table]:
    """Return the columns that a step reads of its rows; [] if it reads none."""
    reads = tuple(getattr(step, "reads", ()))
    known = {file_name_of(name): name for name in rows.column_names}
    if missing := [name for name in reads if name not in known]:
        raise JobError(
            f"model.postprocess {factory}: reads {missing[0]}, and a row has {', '.join(known)}"
        )
    chosen = rows.select([known[name] for name in reads]).rename_columns(list(reads))
    return [chosen.filter(pa.array(ok))] if reads else []


def _made(name: str, made: Any, field: pa.Field, num_rows: int) -> pa.Array:
    """Check a column that a post-processing step made, and return it as Arrow.

    Raises:
        JobError: The column differs from the step's schema.
    """
    subject = f"model.postprocess {name}: column {field.name}"
    if not isinstance(made, Mapping) or field.name not in made:
        raise JobError(f"{subject} is not in what the call returned ({_contents_of(made)})")
    try:
        values = pa.array(made[field.name], field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{subject} is to be {field.type}: {error}") from error
    if len(values) != num_rows:
        raise JobError(f"{subject} has {len(values)} values for {num_rows} rows")
    return values


def _contents_of(made: Any) -> str:
    return ", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__


class Postprocess(Protocol):
    """The result of a `model.postprocess` factory."""

    schema: pa.Schema

    def __call__(self, outputs: Arrays, *rows: pa.Table) -> Mapping[str, Sequence[Any] | pa.Array]:
        """Turn the raw outputs of some rows, each (N, ...), into columns of N values.

        Args:
            rows: The columns that an attribute `reads` names, (N,), if it has one: of texts `text`,
                `text_pair`, `offsets` and `word_ids` of tokens; of images `width_px`, `height_px`.
        """
        ...


def load_postprocess(factory: str, args: Mapping[str, Any]) -> Postprocess:
    """Import and call a post-processing factory, whose module the caller has allowed.

    Args:
        factory: `package.module:callable`.
        args: Its arguments, by name.

    Raises:
        JobError: The factory cannot be imported or called, or has no Arrow schema.
    """
    step: Postprocess = _built(
        factory,
        args,
        "an object with .schema (pyarrow) and __call__(outputs)",
        lambda made: isinstance(getattr(made, "schema", None), pa.Schema) and callable(made),
    )
    return step


def load_step(factory: str, args: Mapping[str, Any]) -> Callable[[Any], Any]:
    """Import and call a factory of a step that turns a model's outputs into others."""
    what = "a callable that takes the model's outputs, tensors (B, ...)"
    step: Callable[[Any], Any] = _built(factory, args, what, callable)
    return step


def _built(
    factory: str, args: Mapping[str, Any], what: str, is_right: Callable[[Any], bool]
) -> Any:
    contract = (
        f"model.postprocess = {factory!r}: is called with model.postprocess_args and must return "
        f"{what}; see jobs/README.md, Postprocess"
    )
    build = import_callable("model.postprocess", factory)
    try:
        check_arguments("model.postprocess", factory, build, args)
    except JobError as error:
        raise JobError(f"{error}; {contract}") from None
    try:
        step = build(**copy.deepcopy(dict(args)))
    except Exception as error:  # a user's code may raise anything
        raise JobError(failed("model.postprocess", factory, error)) from error
    if not is_right(step):
        raise JobError(f"{contract}; it returned a {type(step).__name__}")
    return step
