"""What some rows of a model that writes took: how many rows a slice has, and what all will take.

Pure. A row may cost a thousand times an image, and only trying some tells. The bounds of what is
expected are those of chance, of which rows were tried: 95%, by Student's t distribution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from pipeline.core.documents import known_fields

SLICE_S = 30.0
"""What a slice takes in its actor: a run that is ended loses about so much of each."""
_MOST_ROWS = 8_192
"""Of a slice: the texts of all its rows are in memory at once."""
_DEVIATIONS, _OF_FEW = 1.96, 2.6
"""The quantile 97.5% of Student's t for n rows: 1.96 + 2.6 / (n - 1), within 2% from 8 rows on."""


class Spread(NamedTuple):
    """A figure of the tried rows."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of values, at least one."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else 0.0)


class Expected(NamedTuple):
    """A sum over rows that were not tried."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Probe:
    """Rows that were tried in an actor's place."""

    num_rows: int
    """Rows that cannot be predicted are among them."""
    input_tokens: Spread
    output_tokens: Spread
    row_s: Spread
    """Of one actor."""
    load_s: float
    """Loading the model."""
    num_actors: int
    """There may be so many at once,"""
    num_nodes: int
    """on so many nodes."""
    slices_at_once: int = 1
    """An actor works on so many, which share its GPU."""
    measured_by: str = ""
    """The run that tried them."""
    measured_at: str = ""
    """The date, UTC."""

    @property
    def slice_rows(self) -> int:
        """Return how many rows of a slice take about `SLICE_S`."""
        slice_s = SLICE_S / self.slices_at_once
        return max(1, round(slice_s / max(self.row_s.mean, slice_s / _MOST_ROWS)))

    def expected(self, figure: Spread, times: float) -> Expected:
        """Return what a figure of the rows becomes, added up over so many."""
        quantile = _DEVIATIONS + _OF_FEW / max(1, self.num_rows - 1)
        off = quantile * figure.deviation / math.sqrt(self.num_rows)
        bounds = figure.mean, max(0.0, figure.mean - off), figure.mean + off
        return Expected(*(times * each for each in bounds))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Probe:
        """Undo `to_dict`.

        Raises:
            KeyError, TypeError: It is something else.
        """
        named = ("input_tokens", "output_tokens", "row_s")
        spreads = {name: Spread(*document[name]) for name in named}
        return cls(**{**known_fields(cls, document), **spreads})
