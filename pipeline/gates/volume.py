"""Gate on the number of rows beside earlier partitions.

A fifth of the usual rows is hardly ever what the world did, so it refuses.
"""

from __future__ import annotations

from statistics import median

from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import NOTHING_EARLIER, Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Gates


class Volume(Gate):
    """Rows beside the median of earlier partitions."""

    name = "volume"
    needs: frozenset[Need] = frozenset(["history"])

    def is_on(self, options: Gates) -> bool:
        return options.volume.mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, rule, num_rows = self.name, options.volume, figures.num_planned
        if rule.mode == "off":
            return skipped(name, f"gates.{name}.mode is off")
        if figures.is_limited:
            return skipped(name, "not judged with run.limit_rows")
        if not past.rows:
            return skipped(name, f"{num_rows} rows; {NOTHING_EARLIER}")
        usual = median(past.rows)
        if max(usual, num_rows) < options.min_rows:
            why = f"{num_rows} rows, median {usual:.10g}; not judged below {options.min_rows} rows"
            return skipped(name, why)
        if not usual:
            return skipped(name, f"{num_rows} rows; earlier partitions were empty")
        change_pct = 100.0 * (num_rows - usual) / usual
        message = (
            f"{num_rows} rows, {change_pct:+.1f}% beside the median {usual:.10g} of "
            f"{len(past.rows)} earlier partitions"
        )
        limit = -rule.max_drop_pct if change_pct < 0 else rule.max_growth_pct
        level: Level = "warn" if abs(change_pct) > rule.warn_pct else "pass"
        if abs(change_pct) > abs(limit):
            level = "fail"
        message = f"{message}; limit {limit:+g}%, warns beyond {rule.warn_pct:g}%"
        return apply_mode(name, rule.mode, level, change_pct, limit, message)


VOLUME = Volume()
