"""Gate on predictions that are all alike, which is hardly ever what the world did."""

from __future__ import annotations

from pipeline.gates.gate import Figures, Gate
from pipeline.gates.history import Past
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode


class Constant(Gate):
    """One label and one score, one vector, or the same numbers for all rows."""

    name = "constant"
    judges_computed = True

    def mode(self, options: Gates) -> Mode:
        return options.constant.mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        now, num_predicted = figures.distribution, figures.num_predicted
        if not now.numbers:
            return Finding("off", "no label or number was counted")
        if num_predicted < max(2, options.min_rows):
            few = f"{num_predicted} predictions; not judged below {options.min_rows}"
            return Finding("off", few)
        if not now.is_constant(options.constant.tolerance):
            return Finding("pass", f"{num_predicted} predictions are not all alike")
        seen = [f"label {label!r}" for label, rows in now.labels.items() if rows]
        seen += [f"{key} {numbers.lowest:.6g}" for key, numbers in now.numbers.items()]
        return Finding("fail", f"all {num_predicted} predictions are alike: {', '.join(seen[:3])}")


CONSTANT = Constant()
