"""Estimate the time and cost of a run from the last run of the same model; nothing is guessed."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.report.document import Report
from pipeline.report.showing.blocks import format_rate

NO_BASIS = "no run of this model over 100 rows or more is on record here"
NOTHING_LEFT = "this is published already"


@dataclass(frozen=True)
class Estimate:
    """The time and cost of a run on the hardware of the run that is its basis; None if unknown."""

    minutes: float | None
    """Of the whole run: `start_up_s`, computing the remaining rows, publishing."""
    rows_per_s: float | None
    """While it streams, after the model is loaded."""
    start_up_s: float | None
    """The part that does not depend on the rows: Ray, loading the model, listing."""
    cost: float | None
    """In the currency of `run.price_per_node_hour`, for as many nodes."""
    basis: str
    """The run that the figures follow from, with its hardware; or why there are no figures."""
    tokens: int | None = None
    """Of the remaining rows, if each has as many as in that run; null if rows have none."""


def estimate(
    past: Report | None,
    rows_left: int | None,
    num_rows: int | None,
    price_per_node_hour: float | None,
    *,
    is_published: bool = False,
) -> Estimate:
    """Estimate a run. For the rows of the past run itself the result is the time that it took.

    Args:
        past: The report of a comparable run; None if there is none.
        rows_left: Rows to compute; None if unknown before the input is read.
        num_rows: Rows to publish.
        price_per_node_hour: Of one node.
        is_published: There is nothing to do.
    """
    if is_published:
        return Estimate(0.0, None, None, None if price_per_node_hour is None else 0.0, NOTHING_LEFT)
    if past is None or not past.rows.computed or past.wall_s is None or not past.rows_per_s:
        return Estimate(None, None, None, None, NO_BASIS)
    rate, (publish_s, publish_row_s) = _rate(past), _publishing(past)
    start_up_s = max(0.0, past.wall_s - past.rows.computed / rate - publish_s)
    minutes = cost = None
    if rows_left is not None and num_rows is not None:
        minutes = (start_up_s + rows_left / rate + publish_row_s * num_rows) / 60
    nodes = past.hardware.nodes
    if minutes is not None and price_per_node_hour is not None and nodes is not None:
        cost = minutes / 60 * nodes * price_per_node_hour
    per_row = past.texts.tokens_per_row if past.texts else None
    tokens = None if rows_left is None or per_row is None else round(rows_left * per_row)
    return Estimate(minutes, rate, start_up_s, cost, _basis(past, minutes), tokens)


def _rate(past: Report) -> float:
    """Return the rows/s of the stream, less the time in which it loaded models.

    The stages may have worked meanwhile, so the rate is never above the lowest limit.
    """
    rows, streamed = past.rows.computed or 0, past.rows_per_s or 0.0
    waited_s = sum(p.wall_s or 0.0 for p in past.startup if p.part != "ray_start")
    left_s = (past.streaming_wall_s or 0.0) - waited_s
    limits = [limit.limit_rows_per_s for limit in past.limits]
    if left_s <= 0 or not limits:
        return streamed
    return max(streamed, min(rows / left_s, *limits))


def _publishing(past: Report) -> tuple[float, float]:
    """Return the seconds that publishing took, in all and per row."""
    did = next((stage for stage in past.stages if stage.stage == "publish"), None)
    if did is None or not did.busy_s or not did.rows_in:
        return 0.0, 0.0
    return did.busy_s, did.busy_s / did.rows_in


_ENDS = {
    "refused": "refused",
    "stopped": "stopped before its end",
    "failed": "a failure before its end",
}


def _basis(past: Report, minutes: float | None) -> str:
    had = past.hardware
    parts = [f"{had.nodes:,} nodes"] if had.nodes not in (None, 1) else []
    parts += [f"{had.cpus:g} CPU cores"] if had.cpus is not None else []
    parts += [f"{had.gpus:g} GPUs ({had.gpu_name})"] if had.gpus else []
    rate = format_rate(past.rows_per_s)
    text = f"run {past.run_id}: {past.rows.computed:,} rows at {rate} rows/s"
    text += f" on {', '.join(parts)}" if parts else ""
    if past.status != "published":
        text += f"; it was {_ENDS[past.status]}, so publishing is not counted"
    if minutes is None:
        text += "; how many rows are left is known only when the input has been read"
    return text
