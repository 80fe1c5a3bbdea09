"""Gate on texts that were cut: the model saw only their beginning."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Gates


class TruncatedShare(Gate):
    """Share of rows with more tokens than `text.max_tokens`."""

    name = "max_truncated_pct"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.max_truncated_pct
        num_rows, num_cut = figures.num_tokenised, figures.num_truncated
        if not num_rows:
            return skipped(name, "no texts to judge")
        share = 100.0 * num_cut / num_rows
        message = f"{num_cut} of {num_rows} texts were cut, {share:.2f}%; limit {limit:g}%"
        if num_rows < options.min_rows:
            few = f"{message}; not judged below {options.min_rows} rows"
            return GateResult(name, "off", share, limit, few)
        level: Level = "fail" if share > limit else "pass"
        return apply_mode(name, options.truncated_mode, level, share, limit, message)


TRUNCATED = TruncatedShare()
