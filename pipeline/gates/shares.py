"""Gates on the number of rows: none lost, as many as usual, few quarantined, skipped or cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

from pipeline.core.failures import format_causes
from pipeline.core.figures import Generated, Tokenised
from pipeline.gates.earlier_partitions import NOTHING_EARLIER, Past
from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode


class Conservation(Gate):
    """Planned rows = predictions + quarantine; a failure is never accepted."""

    name = "conservation"

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        planned, accounted = figures.num_planned, figures.num_predicted + figures.num_quarantined
        message = f"{accounted} of {planned} planned rows are predicted or quarantined"
        is_fine = planned == accounted
        return Finding("pass" if is_fine else "fail", message, float(accounted), float(planned))


class NotEmpty(Gate):
    """There is at least one row."""

    name = "not_empty"

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        counts = f"{figures.num_shards} shards with {figures.num_planned} rows"
        message = figures.why_empty if figures.why_empty and not figures.num_shards else counts
        if figures.num_planned:
            return Finding("pass", message, float(figures.num_planned), 1.0)
        if options.allow_empty:
            return Finding("off", f"{message}; gates.allow_empty is true", 0.0, 1.0)
        hint = "check source.uri and source.format, or set gates.allow_empty to true"
        return Finding("fail", f"{message}; {hint}", 0.0, 1.0)


class Volume(Gate):
    """Rows in comparison with the median of earlier partitions.

    A fifth of the usual rows is hardly ever a change of the world, so it refuses by default.
    """

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
            f"{num_rows} rows, {change_pct:+.1f}% from the median {usual:.10g} of "
            f"{len(past.rows)} earlier partitions"
        )
        limit = -rule.max_drop_pct if change_pct < 0 else rule.max_growth_pct
        message = f"{message}; limit {limit:+g}%, warns beyond {rule.warn_pct:g}%"
        if abs(change_pct) > abs(limit):
            return Finding("fail", message, change_pct, limit)
        is_fine = abs(change_pct) <= rule.warn_pct
        return Finding("pass" if is_fine else "warn", message, change_pct, limit)


@dataclass(frozen=True)
class Share(Gate):
    """Share of rows, files or texts with some property; its limit is the option of its name."""

    name: str
    mode_field: str
    words: str
    """The property, and of what: `rows quarantined` of `rows`."""
    counts: Callable[[Figures], tuple[int, int]]
    """Returns how many have the property, and how many there are."""
    of_files: bool = False
    """Judged whatever their number."""
    of_rows: bool = False
    """More rows cannot undo a failure; if all have the property, they are judged whatever their
    number; the message has the causes."""

    @property
    def only_worsens(self) -> bool:  # type: ignore[override]  # a field of the protocol
        return self.of_rows

    def mode(self, options: Gates) -> Mode:
        mode: Mode = getattr(options, self.mode_field)
        return mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        limit: float = getattr(options, self.name)
        num_so, num_all = self.counts(figures)
        if not num_all:
            return Finding("off", "there is nothing to judge", None, limit)
        share = 100.0 * num_so / num_all
        message = f"{num_so} of {num_all} {self.words}, {share:.2f}%; limit {limit:g}%"
        if self.of_rows and (words := format_causes(figures.causes, num_so)):
            message += f" ({words})"
        all_failed = self.of_rows and num_so == num_all and limit < 100
        if num_all < options.min_rows and not (self.of_files or all_failed):
            few = f"{message}; not judged below {options.min_rows} rows"
            return Finding("off", few, share, limit)
        return Finding("fail" if all_failed or share > limit else "pass", message, share, limit)


class Errors(Share):
    """Share of rows that are quarantined, and of shards and bytes that cannot be read.

    An unreadable shard counts as one row, whatever the number of its rows.
    """

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        of_rows, shards = super().judge(options, figures, past), figures.unreadable
        if not shards.num_shards:
            return of_rows
        limit, share = options.max_error_pct, shards.worst_pct
        message = f"{shards.describe('read')}; limit {limit:g}%"
        if share > limit:
            return Finding("fail", f"{message}; {of_rows.message}", share, limit)
        warned = of_rows if of_rows.level == "fail" else replace(of_rows, level="warn")
        return replace(warned, message=f"{of_rows.message}; {message}")


class ReasonShares(Gate):
    """Shares of rows with one reason."""

    name = "max_reason_pct"
    only_worsens = True

    def mode(self, options: Gates) -> Mode:
        return options.reason_mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        caps, num_rows, reasons = options.max_reason_pct, figures.num_planned, figures.reasons
        if not caps or num_rows == 0:
            return Finding("off", "no reason has a limit" if num_rows else "no rows to judge")
        shares = {reason: 100.0 * reasons.get(reason, 0) / num_rows for reason in caps}
        worst = max(caps, key=lambda reason: shares[reason] - caps[reason])
        over = [reason for reason in caps if shares[reason] > caps[reason]]
        message = ", ".join(
            f"{reason}: {reasons.get(reason, 0)} of {num_rows} rows, {shares[reason]:.2f}%; "
            f"limit {caps[reason]:g}%"
            for reason in over or [worst]
        )
        causes = [cause for cause in figures.causes if cause.reason in over]
        if words := format_causes(causes, sum(reasons.get(reason, 0) for reason in over)):
            message += f" ({words})"
        value, limit = shares[worst], caps[worst]
        if num_rows < options.min_rows:
            few = f"{message}; not judged below {options.min_rows} rows"
            return Finding("off", few, value, limit)
        return Finding("fail" if over else "pass", message, value, limit)


def _skipped(figures: Figures) -> tuple[int, int]:
    return figures.num_skipped, figures.num_shards + figures.num_skipped


def _truncated(figures: Figures) -> tuple[int, int]:
    texts = figures.measured.tokenised or Tokenised()
    return texts.num_truncated, texts.num_rows


def _repeating(figures: Figures) -> tuple[int, int]:
    written = figures.measured.generated or Generated()
    return written.num_repeating, written.num_rows


CONSERVATION, NOT_EMPTY = Conservation(), NotEmpty()
REASONS, VOLUME = ReasonShares(), Volume()
ERRORS = Errors(
    "max_error_pct",
    "error_mode",
    "rows quarantined",
    lambda figures: (figures.num_quarantined, figures.num_planned),
    of_rows=True,
)
SKIPPED = Share("max_skipped_pct", "skipped_mode", "files are not read", _skipped, of_files=True)
TRUNCATED = Share("max_truncated_pct", "truncated_mode", "texts were cut", _truncated)
REPEATING = Share("max_repeating_pct", "repeating_mode", "outputs repeat themselves", _repeating)
