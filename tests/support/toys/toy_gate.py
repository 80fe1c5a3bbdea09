"""A gate that no code of the pipeline knows: no more rows than there is a budget for."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, apply_mode
from pipeline.job.gates import Mode
from pipeline.job.section import PositiveInt, Section

NAME = "row_budget"


class Budget(Section):
    """What a job says in `gates.options.row_budget`."""

    max_rows: PositiveInt
    """Refuse when there are more rows."""
    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`."""


class RowBudget(Gate):
    """Rows of the plan."""

    name = NAME
    Options: type[Section] = Budget

    def judge(self, options: Budget, figures: Figures, past: Past) -> GateResult:
        num_rows, limit = figures.num_planned, options.max_rows
        message = f"{num_rows} rows; limit {limit}"
        level = "fail" if num_rows > limit else "pass"
        return apply_mode(self.name, options.mode, level, float(num_rows), float(limit), message)


GATE = RowBudget()
