"""Rows whose logits a narrower type could not hold, written once more in eager fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pipeline.core.errors import PipelineError
from pipeline.inference.devices.device_model import DeviceModel
from pipeline.inference.engines.greedy import Writing
from pipeline.inference.engines.rules import Row
from pipeline.inference.exact import alone
from pipeline.process.liveness import still_alive

Begin = Callable[[DeviceModel, Sequence[Row]], Writing]
"""Begins to write rows, of which nothing is written yet, with a model."""


def write_again(model: DeviceModel, rows: Sequence[Row], begin: Begin) -> list[Row]:
    """Return rows as eager fp32 writes them, without those over which it raises an error alone.

    Args:
        model: Of a precision in `exact.NARROW`.
        rows: As they were written.
        begin: Begins to write them.
    """
    config = replace(model.config, spec=model.config.spec.as_reference(), limits=None)
    return alone(model, config, lambda exact: [*_written(exact, rows, begin)], keeps=True)


def _written(exact: DeviceModel, rows: Sequence[Row], begin: Begin) -> Iterator[Row]:
    writing, done = begin(exact, [row.afresh() for row in rows]), list[Row]()
    try:
        while writing:
            done += writing.advance()
            still_alive()
    except Exception as error:
        lacks_memory = exact.gpu is not None and exact.gpu.lacks_memory(error)
        if isinstance(error, PipelineError) or lacks_memory:
            raise
    else:
        yield from done
        return
    half = len(rows) // 2
    for some in (rows[:half], rows[half:]) if half else ():
        yield from _written(exact, some, begin)
