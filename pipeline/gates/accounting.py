"""Gates on rows being there: every one is accounted for, and there is at least one."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, Level
from pipeline.job.gates import Gates


class Conservation(Gate):
    """Planned rows = predictions + quarantine; never accepted."""

    name = "conservation"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        planned, accounted = figures.num_planned, figures.num_predicted + figures.num_quarantined
        message = f"{accounted} of {planned} planned rows are predicted or quarantined"
        level: Level = "pass" if planned == accounted else "fail"
        return GateResult(self.name, level, float(accounted), float(planned), message)


class NotEmpty(Gate):
    """There is at least one row."""

    name = "not_empty"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        found = f"{figures.num_shards} shards with {figures.num_planned} rows"
        message = figures.why_empty if figures.why_empty and not figures.num_shards else found
        if figures.num_planned:
            return GateResult(self.name, "pass", float(figures.num_planned), 1.0, message)
        if options.allow_empty:
            return GateResult(self.name, "off", 0.0, 1.0, f"{message}; gates.allow_empty is true")
        hint = "check source.uri and source.format, or set gates.allow_empty to true"
        return GateResult(self.name, "fail", 0.0, 1.0, f"{message}; {hint}")


CONSERVATION, NOT_EMPTY = Conservation(), NotEmpty()
