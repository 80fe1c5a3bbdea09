"""Gate on predictions that are all alike, which is hardly ever what the world did."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import GateResult, apply_mode, skipped
from pipeline.job.gates import Gates


class Constant(Gate):
    """One label and one score, one vector, or the same numbers for all rows."""

    name = "constant"
    judges_computed = True

    def is_on(self, options: Gates) -> bool:
        return options.constant.mode != "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> GateResult:
        name, rule = self.name, options.constant
        now, num_predicted = figures.distribution, figures.num_predicted
        if rule.mode == "off":
            return skipped(name, f"gates.{name}.mode is off")
        if not now.numbers:
            return skipped(name, "no label or number was counted")
        if num_predicted < max(2, options.min_rows):
            return skipped(
                name, f"{num_predicted} predictions; not judged below {options.min_rows}"
            )
        if not now.is_constant(rule.tolerance):
            return GateResult(
                name, "pass", None, None, f"{num_predicted} predictions are not all alike"
            )
        seen = [f"label {label!r}" for label, rows in now.labels.items() if rows]
        seen += [f"{key} {numbers.lowest:.6g}" for key, numbers in now.numbers.items()]
        message = f"all {num_predicted} predictions are alike: {', '.join(seen[:3])}"
        return apply_mode(name, rule.mode, "fail", None, None, message)


CONSTANT = Constant()
