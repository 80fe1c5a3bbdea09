"""Gates on rows that are predicted twice: golden rows, carried rows, the reference check."""

from __future__ import annotations

from pipeline.core.figures import Comparison
from pipeline.gates.earlier_partitions import Past
from pipeline.gates.gate import Figures, Gate, Need
from pipeline.gates.results import Finding
from pipeline.job.gates import Gates, Mode

_SHOWN = 3


class Golden(Gate):
    """Rows with known predictions; `golden.py` predicts and compares them."""

    name = "golden"
    needs: frozenset[Need] = frozenset(["golden"])

    def mode(self, options: Gates) -> Mode:
        return options.golden.mode if options.golden else "off"

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        golden = figures.measured.golden or Comparison()
        compared, agreed = golden.num_rows, golden.num_agreed
        if compared == 0:
            if figures.num_predicted == 0:
                return Finding("off", "nothing was predicted")
            why = "all slices are of earlier runs, whose actors were not compared"
            return Finding("warn", why, None, 100.0)
        num_actors = figures.measured.golden_actors
        message = f"{agreed} of {compared} golden rows agree, on {num_actors} actors"
        share = 100.0 * agreed / compared
        return Finding("pass" if agreed == compared else "fail", message, share, 100.0)


class ReferenceCheck(Gate):
    """Rows predicted again in eager fp32."""

    name = "min_agreement_pct"
    needs: frozenset[Need] = frozenset(["reference_check"])

    def mode(self, options: Gates) -> Mode:
        return options.agreement_mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        limit, check = options.min_agreement_pct, figures.measured.reference_check
        if check is None:
            return Finding("off", "nothing was to be compared", None, limit)
        if check.num_rows == 0:
            why = "no row was compared with eager fp32, although some were to be"
            return Finding("fail", why, None, limit)
        share = 100.0 * check.num_agreed / check.num_rows
        message = (
            f"{check.num_agreed} of {check.num_rows} rows agree with eager fp32; limit {limit:g}%"
        )
        # A single row of a small sample proves nothing.
        num_off = check.num_rows - check.num_agreed
        is_fine = share >= limit or (num_off == 1 and check.num_rows > 1)
        return Finding("pass" if is_fine else "fail", message, share, limit)


class Carried(Gate):
    """Rows taken over from earlier versions and predicted again."""

    name = "carried"
    needs: frozenset[Need] = frozenset(["carried"])

    def mode(self, options: Gates) -> Mode:
        return options.carried_mode

    def judge(self, options: Gates, figures: Figures, past: Past) -> Finding:
        compared = figures.num_checked
        if not figures.num_carried and not compared:
            return Finding("off", "nothing was carried")
        if figures.is_retry:
            return Finding("off", "a retry keeps the predictions of its version")
        if not compared:
            why = f"none of {figures.num_carried} carried rows could be predicted again"
            return Finding("warn", why, None, 100.0)
        differing = figures.differing
        agreed = compared - len(differing)
        message = f"{agreed} of {compared} carried rows agree when they are predicted again"
        if differing:
            more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
            message += (
                f"; not these: {'; '.join(differing[:_SHOWN])}{more}; with --no-reuse the next run "
                "predicts all rows"
            )
        share = 100.0 * agreed / compared
        return Finding("fail" if differing else "pass", message, share, 100.0)


CARRIED, GOLDEN, REFERENCE_CHECK = Carried(), Golden(), ReferenceCheck()
