"""Gate on speed and errors beside the usual ones of the last earlier partitions.

Limits that are fixed in the job say what is never right; this says what is not as it was. It warns
by default: a slow night is published all the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import Earlier, Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Mode
from pipeline.job.section import NotNegative, PositiveInt, Section

_SPREADS = 3 * 1.4826
"""Three standard deviations of a normal distribution, in median absolute deviations."""
_LEAST_ROWS = 100
"""Of fewer rows no share is known to a percent."""


class Band(Section):
    """What a job may say in `gates.options.regression`."""

    mode: Mode = "warn"
    """Highest severity: `off`, `warn` or `fail`."""
    history_partitions: PositiveInt = 14
    """How many earlier partitions make the band, the newest ones, at most 32."""
    min_partitions: PositiveInt = 3
    """With fewer that can be compared nothing is judged."""
    slower_pct: NotNegative = 30.0
    """Rows/s may be lower than the median by this share of it, or by the usual spread."""
    min_streaming_s: NotNegative = 10.0
    """Of runs that streamed for less no speed is compared."""
    more_errors_pct: NotNegative = 1.0
    """The quarantined share of the rows may be higher than the median by this many percentage
    points, or by the usual spread."""


class _Found(NamedTuple):
    is_out: bool
    value: float
    limit: float
    told: str


class Regression(Gate):
    """Rows/s while streaming, and the quarantined share of the rows."""

    name = "regression"
    Options: type[Section] = Band
    needs: frozenset[Need] = frozenset(["history"])

    def is_on(self, options: Band) -> bool:
        return options.mode != "off"

    def judge(self, options: Band, figures: Figures, past: Past) -> GateResult:
        name, least = self.name, options.min_partitions
        if options.mode == "off":
            return skipped(name, f"gates.options.{name}.mode is off")
        if figures.is_limited:
            return skipped(name, "not judged with run.limit_rows")
        earlier = past.earlier[: options.history_partitions]
        found = [*_speed(options, figures, earlier), *_errors(options, figures, earlier)]
        if not found:
            return skipped(name, f"fewer than {least} earlier partitions can be compared")
        first = min(found, key=lambda each: not each.is_out)
        level: Level = "fail" if first.is_out else "pass"
        message = "; ".join(each.told for each in found)
        return apply_mode(name, options.mode, level, first.value, first.limit, message)


def _speed(options: Band, figures: Figures, earlier: Sequence[Earlier]) -> list[_Found]:
    now = figures.speed
    if now is None or now.streaming_s < options.min_streaming_s:
        return []
    speeds = [each.speed for each in earlier if each.speed and each.speed.is_like(now)]
    usual = [each.rows_per_s for each in speeds if each.streaming_s >= options.min_streaming_s]
    if len(usual) < options.min_partitions:
        return []
    middle, spread = _band(usual)
    limit = middle - max(spread, middle * options.slower_pct / 100)
    told = (
        f"{now.rows_per_s:,.4g} rows/s while streaming, median {middle:,.4g} of {len(usual)} "
        f"earlier partitions; limit {limit:,.4g}"
    )
    return [_Found(now.rows_per_s < limit, now.rows_per_s, limit, told)]


def _errors(options: Band, figures: Figures, earlier: Sequence[Earlier]) -> list[_Found]:
    usual = [
        100 * each.num_quarantined / each.num_rows
        for each in earlier
        if each.num_rows >= _LEAST_ROWS
    ]
    if len(usual) < options.min_partitions or figures.num_planned < _LEAST_ROWS:
        return []
    share = 100 * figures.num_quarantined / figures.num_planned
    middle, spread = _band(usual)
    limit = middle + max(spread, options.more_errors_pct)
    told = (
        f"{share:.3g}% quarantined, median {middle:.3g}% of {len(usual)} earlier partitions; "
        f"limit {limit:.3g}%"
    )
    return [_Found(share > limit, share, limit, told)]


def _band(usual: Sequence[float]) -> tuple[float, float]:
    """Return the median, and how far from it values usually lie."""
    middle = median(usual)
    return middle, _SPREADS * median(abs(value - middle) for value in usual)


REGRESSION = Regression()
