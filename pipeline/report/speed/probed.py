"""What rows that were tried say of a run, before its first row."""

from __future__ import annotations

from pipeline.planning.probe import Expected, Probe
from pipeline.report.sections import Section


class Interval(Section):
    """What is expected, and the bounds between which it lies in 95 of 100 runs."""

    value: float
    low: float
    high: float


class Probed(Section):
    """What the rows of a run will take, by some that were tried; the bounds are those of chance,
    of which rows were tried, by Student's t distribution."""

    tried_rows: int
    rows: int
    """That were to be computed."""
    input_tokens: Interval
    output_tokens: Interval
    minutes: Interval
    """From the first read to the last write; loading the model is within."""
    cost: Interval | None = None
    """Of these minutes, in the currency of `run.price_per_node_hour`."""
    tried_by: str
    """The run that tried them."""
    tried_at: str
    """The date, UTC."""


def probed(
    probe: Probe,
    num_rows: int,
    num_slices: int | None,
    price_per_node_hour: float | None,
    *,
    num_actors: int | None = None,
    num_nodes: int | None = None,
) -> Probed:
    """Say what rows will take.

    Args:
        probe: What is known of them.
        num_rows: Rows to compute.
        num_slices: Their slices, each of which one actor computes; None: unknown.
        price_per_node_hour: Of one node.
        num_actors: At once; None: as there were places when rows were tried.
        num_nodes: That are paid for; None: likewise.
    """
    actors = max(1, min(num_actors or probe.num_actors, num_slices or num_rows))
    nodes = num_nodes or probe.num_nodes
    took = probe.expected(probe.row_s, num_rows / actors)
    load_s = probe.load_s if num_rows else 0.0
    minutes = Expected(*((load_s + each) / 60 for each in took))
    cost = None
    if price_per_node_hour is not None:
        cost = Expected(*(each / 60 * nodes * price_per_node_hour for each in minutes))
    return Probed(
        tried_rows=probe.num_rows,
        rows=num_rows,
        input_tokens=_interval(probe.expected(probe.input_tokens, num_rows)),
        output_tokens=_interval(probe.expected(probe.output_tokens, num_rows)),
        minutes=_interval(minutes),
        cost=None if cost is None else _interval(cost),
        tried_by=probe.measured_by,
        tried_at=probe.measured_at,
    )


def _interval(found: Expected) -> Interval:
    return Interval(value=found.value, low=found.low, high=found.high)
