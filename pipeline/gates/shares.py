"""Gates on shares: of quarantined rows, of one reason, and of files that are not read."""

from __future__ import annotations

from pipeline.core.causes import in_words
from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Gates


class ErrorShare(Gate):
    """Share of quarantined rows."""

    name = "max_error_pct"
    only_worsens = True

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.max_error_pct
        num_rows, num_quarantined = figures.num_planned, figures.num_quarantined
        if num_rows == 0:
            return GateResult(name, "off", None, limit, "no rows to judge")
        share = 100.0 * num_quarantined / num_rows
        message = (
            f"{num_quarantined} of {num_rows} rows quarantined, {share:.2f}%; limit {limit:g}%"
        )
        if words := in_words(figures.causes, num_quarantined):
            message += f" ({words})"
        all_failed = num_quarantined == num_rows and limit < 100
        if num_rows < options.min_rows and not all_failed:
            few = f"{message}; not judged below {options.min_rows} rows"
            return GateResult(name, "off", share, limit, few)
        level: Level = "fail" if all_failed or share > limit else "pass"
        return apply_mode(name, options.error_mode, level, share, limit, message)


class ReasonShares(Gate):
    """Share of rows with one reason."""

    name = "max_reason_pct"
    only_worsens = True

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, caps = self.name, options.max_reason_pct
        num_rows, reasons = figures.num_planned, figures.reasons
        if not caps or num_rows == 0:
            return skipped(name, "no reason has a limit" if num_rows else "no rows to judge")
        shares = {reason: 100.0 * reasons.get(reason, 0) / num_rows for reason in caps}
        worst = max(caps, key=lambda reason: shares[reason] - caps[reason])
        over = [reason for reason in caps if shares[reason] > caps[reason]]
        message = ", ".join(
            f"{reason}: {reasons.get(reason, 0)} of {num_rows} rows, {shares[reason]:.2f}%; "
            f"limit {caps[reason]:g}%"
            for reason in over or [worst]
        )
        found = [cause for cause in figures.causes if cause.reason in over]
        if words := in_words(found, sum(reasons.get(reason, 0) for reason in over)):
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


ERRORS, REASONS, SKIPPED = ErrorShare(), ReasonShares(), SkippedShare()
