"""Say which stages became slower since the last comparable run."""

from __future__ import annotations

import logging
from typing import Any

from pipeline.core.errors import PipelineError
from pipeline.report.document import Report
from pipeline.report.past_runs import Recipe, find_past_run
from pipeline.report.performance import SlowerStage
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

SLOWER_PCT = 20.0
MIN_BUSY_S = 1.0
"""Of less work than this, a fifth is noise."""


def slower_than_before(report: Report, previous: Report) -> list[SlowerStage]:
    """Return the stages whose rows/s a busy slot fell by more than `SLOWER_PCT`."""
    before = {stage.stage: stage.rows_per_busy_slot_s for stage in previous.stages}
    slower = []
    for stage in report.stages:
        now, then = stage.rows_per_busy_slot_s, before.get(stage.stage)
        if now is None or not then or (stage.busy_s or 0.0) < MIN_BUSY_S:
            continue
        change_pct = round(100 * (now / then - 1), 2)
        if change_pct < -SLOWER_PCT:
            slower.append(
                SlowerStage(
                    stage=stage.stage,
                    rows_per_busy_slot_s=now,
                    before=then,
                    change_pct=change_pct,
                    run_id=previous.run_id,
                )
            )
    return slower


def compare_with_before(store: Store, report: dict[str, Any]) -> dict[str, Any]:
    """Return the report with `slower_than_before`; null where there is nothing to compare with.

    Storage trouble costs the comparison, never the report.
    """
    this = Report.model_validate(report, extra="ignore")
    recipe = Recipe.of(this)
    if not recipe.fits(this):
        return report

    def is_like_this(past: Report) -> bool:
        same = (past.hardware, past.decode_in) == (this.hardware, this.decode_in)
        return same and past.run_id < this.run_id and recipe.fits(past)

    try:
        previous = find_past_run(store, this.partition, is_like_this)
    except PipelineError as error:
        log.warning("not compared with earlier runs: %s", error)
        return report
    if previous is None:
        return report
    slower = slower_than_before(this, previous)
    return {**report, "slower_than_before": [stage.model_dump() for stage in slower]}
