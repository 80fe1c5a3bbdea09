"""Gate on the number of rows beside earlier partitions.

A fifth of the usual rows is hardly ever what the world did, so it refuses.
"""

from __future__ import annotations

from statistics import median

from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import NOTHING_EARLIER, Past
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode


class Volume(Gate):
    """Rows beside the median of earlier partitions."""

    name = "volume"
    needs: frozenset[Need] = frozenset(["history"])

    def mode(self, options: Gates) -> Mode:
        return options.volume.mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        rule, num_rows = options.volume, figures.num_planned
        if figures.is_limited:
            return Finding("off", "not judged with run.limit_rows")
        if not past.rows:
            return Finding("off", f"{num_rows} rows; {NOTHING_EARLIER}")
        usual = median(past.rows)
        if max(usual, num_rows) < options.min_rows:
            why = f"{num_rows} rows, median {usual:.10g}; not judged below {options.min_rows} rows"
            return Finding("off", why)
        if not usual:
            return Finding("off", f"{num_rows} rows; earlier partitions were empty")
        change_pct = 100.0 * (num_rows - usual) / usual
        message = (
            f"{num_rows} rows, {change_pct:+.1f}% beside the median {usual:.10g} of "
            f"{len(past.rows)} earlier partitions"
        )
        limit = -rule.max_drop_pct if change_pct < 0 else rule.max_growth_pct
        message = f"{message}; limit {limit:+g}%, warns beyond {rule.warn_pct:g}%"
        if abs(change_pct) > abs(limit):
            return Finding("fail", message, change_pct, limit)
        is_fine = abs(change_pct) <= rule.warn_pct
        return Finding("pass" if is_fine else "warn", message, change_pct, limit)


VOLUME = Volume()
