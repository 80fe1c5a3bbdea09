"""Several inputs of a row, each prepared as if alone; the model gets all tensors by name.

In transit the columns of an input are prefixed by its name (core/schema.py, `input_column`); the
input itself sees them without the prefix. Inputs and tensors are named the same way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns, failures_of, of_part
from pipeline.core.figures import Counters, StageCounters, add
from pipeline.core.registry import INPUTS, get
from pipeline.core.schema import ROW_ID, URI, columns_of_part, input_column
from pipeline.core.user_code import extension_errors
from pipeline.preprocessing.model_input import (
    FEW_ROWS,
    BatchLimits,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    Rows,
    Slot,
)
from pipeline.process.liveness import input_started

if TYPE_CHECKING:
    import torch

_ONE_ROW = BatchLimits(1)


@dataclass(frozen=True)
class CompositeInput(Input):
    """Several inputs in the order of the job.

    The only tensor of an input gets the input's name, `photo`. The tensors of a text keep their
    names, `input_ids`, if there is one text; otherwise they are prefixed: `title_input_ids`.
    """

    parts: tuple[tuple[str, Input], ...]
    """Name -> input."""
    name: ClassVar[str] = "several"
    takes: ClassVar[str] = ""
    how_to_name: ClassVar[str] = "takes several inputs: name them with source.inputs"
    cost: ClassVar[Cost] = "image"
    """Cost of one input; `cost_of` has the cost of all inputs of a job."""

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        parts = [(name, get(INPUTS, input_name)) for name, input_name in settings.parts.items()]
        made = cls(tuple((name, part.of(settings)) for name, part in parts))
        names = Counter(name for tensors in made.tensors.values() for name in tensors.values())
        if twice := [name for name, number in names.items() if number > 1]:
            raise JobError(f"source.inputs: two inputs have a tensor {twice[0]!r}; name one anew")
        return made

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[str, str]]:
        """Return input -> the input's name of a tensor -> the model's name of it."""
        num_texts = sum(part.counts_tokens for _, part in self.parts)
        names: dict[str, dict[str, str]] = {}
        for name, part in self.parts:
            tensors = [*part.slots(_ONE_ROW)]
            if part.counts_tokens and num_texts == 1:
                names[name] = {tensor: tensor for tensor in tensors}
            elif len(tensors) == 1 and not part.counts_tokens:
                names[name] = {tensors[0]: name}
            else:
                names[name] = {tensor: f"{name}_{tensor}" for tensor in tensors}
        return names

    @property
    def stage_names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(stage for _, part in self.parts for stage in part.stage_names))

    @property
    def counts_tokens(self) -> bool:
        return any(part.counts_tokens for _, part in self.parts)

    @property
    def max_tokens(self) -> int | None:
        return max((p.max_tokens for _, p in self.parts if p.max_tokens is not None), default=None)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {area: number for _, part in self.parts for area, number in part.semantics.items()}

    @property
    def is_approximate(self) -> bool:
        return any(part.is_approximate for _, part in self.parts)

    def exact(self) -> Self:
        return replace(self, parts=tuple((name, part.exact()) for name, part in self.parts))

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        """Return the batch size of texts, with no more rows than images allow."""
        texts = [part for _, part in self.parts if part.counts_tokens]
        if not texts:
            return BatchLimits(FEW_ROWS[is_on_gpu])
        usual = texts[0].usual_batch(is_on_gpu=is_on_gpu)
        has_images = any(part.cost == "image" for _, part in self.parts)
        return usual._replace(rows=FEW_ROWS[is_on_gpu]) if has_images else usual

    def settings(self) -> dict[str, Any]:
        """Return the settings of each input, and the most tokens of a text."""
        parts = [[name, part.name, part.settings()] for name, part in self.parts]
        return {"inputs": parts, **({"max_tokens": self.max_tokens} if self.counts_tokens else {})}

    def fitted(self, fields: pa.Schema) -> Self:
        return replace(
            self,
            parts=tuple(
                (name, part.fitted(_renamed(fields, self._columns(name, fields.names))))
                for name, part in self.parts
            ),
        )

    def fields(self) -> list[pa.Field]:
        return [
            field.with_name(input_column(name, field.name))
            for name, part in self.parts
            for field in part.fields()
        ]

    def published_fields(self) -> list[pa.Field]:
        """Return the fields of all inputs, prefixed if two have the same name."""
        return [
            field.with_name(self._published(name, field.name))
            for name, part in self.parts
            for field in part.published_fields()
        ]

    def _published(self, part: str, column: str) -> str:
        of_all = [field.name for _, other in self.parts for field in other.published_fields()]
        return column if of_all.count(column) == 1 else f"{part}_{column}"

    def _columns(self, part: str, columns: Iterable[str]) -> dict[str, str]:
        return columns_of_part(part, [name for name, _ in self.parts], columns)

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        """Prepare one input after the other; an input skips rows that an earlier one has failed."""
        kept = {name: rows.column(name) for name in rows.column_names}
        for name, _ in self.parts:
            for column in self._columns(name, rows.column_names):
                del kept[column]
        failures, prepared, counted = failures_of(rows), dict[str, pa.ChunkedArray](), Counters()
        for name, part in self.parts:
            input_started(name)
            columns = {ROW_ID: rows.column(ROW_ID), URI: rows.column(URI)}
            columns |= {
                part_column: rows.column(column)
                for column, part_column in self._columns(name, rows.column_names).items()
            }
            did = Counters()
            table = pa.table({**columns, **failure_columns(failures)})
            with extension_errors(INPUTS, part.name):
                made = part.prepare(table, did, limits, num_threads)
            _count(counted, did, self.stage_names)
            for row, failure in enumerate(failures_of(made)):
                if failures[row] is None and failure is not None:
                    failures[row] = of_part(name, failure)
            published = {field.name for field in part.published_fields()}
            for column in made.column_names:
                if column in published:
                    prepared[self._published(name, column)] = made.column(column)
                elif column not in (ROW_ID, URI, *failure_columns([])):
                    prepared[input_column(name, column)] = made.column(column)
        for entry, values in counted.items():
            add(counters, entry, values)
        return pa.table({**kept, **prepared, **failure_columns(failures)})

    def arrays(self, rows: pa.Table) -> Inputs:
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, part in self.parts:
            columns = {
                part_column: rows.column(column)
                for column, part_column in self._columns(name, rows.column_names).items()
            }
            for field in part.published_fields():
                columns[field.name] = rows.column(self._published(name, field.name))
            for tensor, values in part.arrays(pa.table(columns)).items():
                # Inputs that are not tensors, such as numbers of tokens, have a dot in the name.
                arrays[self.tensors[name].get(tensor, f"{name}.{tensor}")] = values
        return arrays

    def _part(self, part: str, named: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arrays, buffers or shapes of one input, by the input's own names."""
        tensors = self.tensors[part]
        values = {tensor: named[name] for tensor, name in tensors.items() if name in named}
        start = f"{part}."
        others = {n.removeprefix(start): value for n, value in named.items() if n.startswith(start)}
        return {**values, **others}

    def batches(self, inputs: Inputs, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Divide rows by each input with rows of varying shape or length, texts last.

        The batches are then within the limits of all inputs.
        """
        varying = [
            (name, part)
            for name, part in self.parts
            if any(slot.varying for slot in part.slots(limits).values())
        ]
        batches = [rows]
        for name, part in sorted(varying or self.parts[:1], key=lambda p: p[1].counts_tokens):
            arrays = self._part(name, inputs)
            batches = [batch for wider in batches for batch in part.batches(arrays, wider, limits)]
        return batches

    def lengths(self, inputs: Inputs, rows: Rows) -> npt.NDArray[np.int32] | None:
        """Return the tokens of all texts of each row."""
        lengths = [part.lengths(self._part(name, inputs), rows) for name, part in self.parts]
        counted = [counts for counts in lengths if counts is not None]
        return np.sum(counted, axis=0, dtype=np.int32) if counted else None

    def num_padded(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return sum(part.num_padded(self._part(name, shapes)) for name, part in self.parts)

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        slots = {
            self.tensors[name][tensor]: slot
            for name, part in self.parts
            for tensor, slot in part.slots(limits).items()
        }
        if not any(slot.varying for slot in slots.values()):
            return slots
        # Batches divided by one input have any number of rows for the others.
        return {
            name: slot._replace(varying=tuple(sorted({0, *slot.varying})))
            for name, slot in slots.items()
        }

    def gather(self, inputs: Inputs, rows: Rows, buffers: Inputs) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, part in self.parts:
            part_shapes = part.gather(self._part(name, inputs), rows, self._part(name, buffers))
            shapes |= {self.tensors[name][tensor]: shape for tensor, shape in part_shapes.items()}
        return shapes

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import NormaliseSeveral

        parts = [part.normaliser(dtype) for _, part in self.parts]
        return NormaliseSeveral(parts, [len(tensors) for tensors in self.tensors.values()])


def require_every_input_used(seen: Input, taken: Sequence[str], what: str) -> None:
    """Check that a model takes at least one tensor of each of several inputs.

    Args:
        seen: The input of the model.
        taken: The tensors that the model takes.
        what: The function that takes them, for the message.

    Raises:
        JobError: It takes no tensor of an input, whose name may be misspelt.
    """
    if not isinstance(seen, CompositeInput):
        return
    for name, tensors in seen.tensors.items():
        if not {*tensors.values()}.intersection(taken):
            raise JobError(
                f"source.inputs.{name}: {what} takes {', '.join(taken) or 'none of the inputs'}, "
                f"not {' or '.join(tensors.values())}"
            )


def _renamed(schema: pa.Schema, names: Mapping[str, str]) -> pa.Schema:
    return pa.schema([schema.field(name).with_name(new_name) for name, new_name in names.items()])


def _count(counters: Counters, did: Counters, stages: Sequence[str]) -> None:
    """Add the counters of an input; a row counts once in a stage that several inputs share."""
    for entry, values in did.items():
        more: StageCounters | Mapping[str, float] = values
        if entry in counters and entry in stages:
            before, more = StageCounters.from_dict(counters[entry]), StageCounters.from_dict(values)
            left = before.rows_in - before.rows_quarantined - more.rows_quarantined
            more = replace(more, rows_in=0, rows_out=left - before.rows_out)
        add(counters, entry, more)
