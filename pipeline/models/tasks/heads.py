"""Task `heads`: several tasks over the outputs of one pass; columns have the names of the heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from pipeline.models.agreement import Agreement, AgreementLimits
from pipeline.models.outputs import OutputError
from pipeline.models.tasks.base import Arrays, Mask, Task, TaskSpec

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model


@dataclass(frozen=True)
class Heads(Task):
    """Each head's task over the output of its name; columns are `<head>_<column>`."""

    spec: TaskSpec
    job_fields: ClassVar[tuple[str, ...]] = ("heads",)

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        if not model.heads:
            yield "task 'heads' needs heads, by the names of the model's outputs"

    @cached_property
    def tasks(self) -> Mapping[str, Task]:
        """Return the task of each head, by its name."""
        from pipeline.models.tasks import make_task

        return {name: make_task(spec) for name, spec in self.spec.heads}

    def fields(self) -> list[pa.Field]:
        return [
            field.with_name(_column(name, field.name))
            for name, task in self.tasks.items()
            for field in task.fields()
        ]

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for name, output in self._by_name(outputs).items():
            with _told(name):
                reduced = self.tasks[name].reduce(output, num_rows)
            found |= {f"{name}.{key}": values for key, values in reduced.items()}
        return found

    def check(self, arrays: Arrays) -> None:
        for name, task in self.tasks.items():
            with _told(name):
                task.check(_own(name, arrays))

    def _by_name(self, outputs: Any) -> dict[str, Any]:
        """Match outputs to heads: by key, by position, or the one output to all of them."""
        names = [*self.tasks]
        if isinstance(outputs, Mapping):
            if missing := [name for name in names if name not in outputs]:
                has = ", ".join(sorted(map(str, outputs)))
                raise OutputError(f"no output {missing[0]!r} (model.heads); the model has {has}")
            return {name: outputs[name] for name in names}
        if not isinstance(outputs, tuple | list):
            return dict.fromkeys(names, outputs)
        if len(outputs) < len(names):
            raise OutputError(
                f"the model has {len(outputs)} outputs, model.heads has {len(names)} heads"
            )
        return dict(zip(names, outputs, strict=False))

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        return {
            _column(name, column): values
            for name, task in self.tasks.items()
            for column, values in task.columns(_own(name, arrays), ok, rows).items()
        }

    def compare(self, reference: Arrays, found: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare each head; a row agrees if all heads do, and the worst is of the worst head."""
        agreed = [
            task.compare(_own(name, reference), _own(name, found), limits)
            for name, task in self.tasks.items()
        ]
        worst = min(agreed, key=lambda each: each.pct).worst
        return Agreement(np.logical_and.reduce([each.agrees for each in agreed]), worst)

    def differences(self, known: pa.Table, found: pa.Table, limits: AgreementLimits) -> list[str]:
        by_head = {
            name: task.differences(_own_columns(name, known), _own_columns(name, found), limits)
            for name, task in self.tasks.items()
        }
        return [
            "; ".join(f"{name}: {each}" for name, each in zip(by_head, told, strict=True) if each)
            for told in zip(*by_head.values(), strict=True)
        ]

    def measured_columns(self) -> tuple[str, ...]:
        return tuple(
            _column(name, column)
            for name, task in self.tasks.items()
            for column in task.measured_columns()
        )

    def golden_columns(self) -> tuple[str, ...]:
        return tuple(
            _column(name, column)
            for name, task in self.tasks.items()
            for column in task.golden_columns()
        )

    def parse_golden(self, found: pa.Table) -> pa.Table:
        columns: dict[str, pa.ChunkedArray] = {}
        for name, task in self.tasks.items():
            parsed = task.parse_golden(_own_columns(name, found))
            columns |= {
                _column(name, column): parsed.column(column) for column in parsed.column_names
            }
        return pa.table(columns)

    def describe(self, row: Mapping[str, Any]) -> str:
        return "; ".join(
            f"{name}: " + task.describe({f.name: row[_column(name, f.name)] for f in task.fields()})
            for name, task in self.tasks.items()
        )


@contextlib.contextmanager
def _told(head: str) -> Iterator[None]:
    """Name the head in errors of its outputs."""
    try:
        yield
    except OutputError as error:
        raise OutputError(f"model.heads.{head}: {error}") from None


def _column(head: str, column: str) -> str:
    return f"{head}_{column}"


def _own(head: str, arrays: Arrays) -> Arrays:
    start = f"{head}."
    return {n.removeprefix(start): v for n, v in arrays.items() if n.startswith(start)}


def _own_columns(head: str, table: pa.Table) -> pa.Table:
    start = f"{head}_"
    own = [name for name in table.column_names if name.startswith(start)]
    return table.select(own).rename_columns([name.removeprefix(start) for name in own])
