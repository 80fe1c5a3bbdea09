"""Gates on rows that are predicted twice: golden rows, and the reference check."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, Level, apply_mode, skipped
from pipeline.job.gates import Gates


class Golden(Gate):
    """Rows whose predictions are known; `golden.py` predicts and compares them."""

    name = "golden"
    needs: frozenset[Need] = frozenset(["golden"])

    def is_on(self, options: Gates) -> bool:
        return options.golden is not None and options.golden.mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        if options.golden is None or options.golden.mode == "off":
            return skipped(self.name, "no golden rows were asked for")
        compared, agreed = figures.golden_compared, figures.golden_agreed
        if compared == 0:
            if figures.num_predicted == 0:
                return skipped(self.name, "nothing was predicted")
            why = "all slices are of earlier runs, whose actors were not compared"
            return apply_mode(self.name, options.golden.mode, "warn", None, 100.0, why)
        share = 100.0 * agreed / compared
        message = f"{agreed} of {compared} golden rows agree, on {figures.golden_actors} actors"
        level: Level = "pass" if agreed == compared else "fail"
        return apply_mode(self.name, options.golden.mode, level, share, 100.0, message)


class ReferenceCheck(Gate):
    """Rows that eager fp32 predicts again."""

    name = "min_agreement_pct"
    needs: frozenset[Need] = frozenset(["reference_check"])

    def is_on(self, options: Gates) -> bool:
        return options.agreement_mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, limit = self.name, options.min_agreement_pct
        num_compared, num_agreed = figures.num_compared, figures.num_agreed
        if num_compared == 0 and figures.awaits_comparison:
            why = "no row was compared with eager fp32, although some were to be"
            return apply_mode(name, options.agreement_mode, "fail", None, limit, why)
        if num_compared == 0:
            return GateResult(name, "off", None, limit, "nothing was to be compared")
        share = 100.0 * num_agreed / num_compared
        message = f"{num_agreed} of {num_compared} rows agree with eager fp32; limit {limit:g}%"
        # One row of a small sample is no proof of slipping.
        num_off = num_compared - num_agreed
        is_fine = share >= limit or (num_off == 1 and num_compared > 1)
        level: Level = "pass" if is_fine else "fail"
        return apply_mode(name, options.agreement_mode, level, share, limit, message)


GOLDEN, REFERENCE_CHECK = Golden(), ReferenceCheck()
