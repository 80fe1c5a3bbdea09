"""Gates on rows: all accounted for, at least one, and how many are quarantined, skipped or cut."""

from __future__ import annotations

import math

from pipeline.core.causes import format_causes
from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Gates, Mode


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


class ErrorShare(Gate):
    """Share of quarantined rows."""

    name = "max_error_pct"
    only_worsens = True
    judges_computed = True

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, _limit(figures, options.max_error_pct)
        num_rows, num_quarantined = figures.num_planned, figures.num_quarantined
        if num_rows == 0:
            return GateResult(name, "off", None, limit, "no rows to judge")
        share = 100.0 * num_quarantined / num_rows
        message = (
            f"{num_quarantined} of {num_rows} rows quarantined, {share:.2f}%; limit {limit:.4g}%"
        )
        if words := format_causes(figures.causes, num_quarantined):
            message += f" ({words})"
        all_failed = num_quarantined == num_rows and options.max_error_pct < 100
        if num_rows < options.min_rows and not all_failed:
            few = f"{message}; not judged below {options.min_rows} rows"
            return GateResult(name, "off", share, limit, few)
        level: Level = "fail" if all_failed or share > limit else "pass"
        return apply_mode(name, options.error_mode, level, share, limit, message)


class ReasonShares(Gate):
    """Share of rows with one reason."""

    name = "max_reason_pct"
    only_worsens = True
    judges_computed = True

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        caps = {name: _limit(figures, limit) for name, limit in options.max_reason_pct.items()}
        name, num_rows, reasons = self.name, figures.num_planned, figures.reasons
        if not caps or num_rows == 0:
            return skipped(name, "no reason has a limit" if num_rows else "no rows to judge")
        shares = {reason: 100.0 * reasons.get(reason, 0) / num_rows for reason in caps}
        worst = max(caps, key=lambda reason: shares[reason] - caps[reason])
        over = [reason for reason in caps if shares[reason] > caps[reason]]
        message = ", ".join(
            f"{reason}: {reasons.get(reason, 0)} of {num_rows} rows, {shares[reason]:.2f}%; "
            f"limit {caps[reason]:.4g}%"
            for reason in over or [worst]
        )
        found = [cause for cause in figures.causes if cause.reason in over]
        if words := format_causes(found, sum(reasons.get(reason, 0) for reason in over)):
            message += f" ({words})"
        value, limit = shares[worst], caps[worst]
        if num_rows < options.min_rows:
            few = f"{message}; not judged below {options.min_rows} rows"
            return GateResult(name, "off", value, limit, few)
        return apply_mode(
            name, options.reason_mode, "fail" if over else "pass", value, limit, message
        )


class SkippedShare(Gate):
    """Share of files below the source that are no input."""

    name = "max_skipped_pct"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.max_skipped_pct
        num_skipped = figures.num_skipped
        num_files = figures.num_shards + num_skipped
        if num_files == 0:
            return GateResult(name, "off", None, limit, "no files to judge")
        share = 100.0 * num_skipped / num_files
        message = f"{num_skipped} of {num_files} files are not read, {share:.2f}%; limit {limit:g}%"
        level: Level = "fail" if share > limit else "pass"
        return apply_mode(name, options.skipped_mode, level, share, limit, message)


class TruncatedShare(Gate):
    """Share of rows with more tokens than `text.max_tokens`."""

    name = "max_truncated_pct"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.max_truncated_pct
        counts = figures.num_truncated, figures.num_tokenised
        return _share(name, options, options.truncated_mode, limit, counts, "texts were cut")


class RepeatingShare(Gate):
    """Share of written texts that have no end, for they repeat themselves."""

    name = "max_repeating_pct"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.max_repeating_pct
        counts = figures.num_repeating, figures.num_written
        return _share(
            name, options, options.repeating_mode, limit, counts, "outputs repeat themselves"
        )


def _share(
    name: str, options: Gates, mode: Mode, limit: float, counts: tuple[int, int], what: str
) -> GateResult:
    """Judge the share of texts that are so; `counts` has theirs, and that of all."""
    num_bad, num_rows = counts
    if not num_rows:
        return skipped(name, "no texts to judge")
    share = 100.0 * num_bad / num_rows
    message = f"{num_bad} of {num_rows} {what}, {share:.2f}%; limit {limit:g}%"
    if num_rows < options.min_rows:
        few = f"{message}; not judged below {options.min_rows} rows"
        return GateResult(name, "off", share, limit, few)
    level: Level = "fail" if share > limit else "pass"
    return apply_mode(name, mode, level, share, limit, message)


def _limit(figures: Figures, limit_pct: float) -> float:
    """Return a limit; of some of the rows with a row and three standard deviations for chance."""
    num_rows = figures.num_planned
    if not figures.is_sample or not num_rows:
        return limit_pct
    share = limit_pct / 100
    by_chance = 300 * math.sqrt(share * (1 - share) / num_rows) + 100 / num_rows
    return min(100.0, limit_pct + by_chance)


CONSERVATION, NOT_EMPTY = Conservation(), NotEmpty()
ERRORS, REASONS = ErrorShare(), ReasonShares()
SKIPPED, TRUNCATED, REPEATING = SkippedShare(), TruncatedShare(), RepeatingShare()
