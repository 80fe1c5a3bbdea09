"""What is not as it was warns: speed of the same model on the same hardware, and errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from pipeline.core.figures.speed import Speed
from pipeline.gates.gate import Figures
from pipeline.gates.history import Earlier, Past
from pipeline.gates.regression import REGRESSION, Band

SPEED = Speed(100.0, 60.0, "m", "1 node")
FIGURES = Figures(1_000, 1_000, 0, 1, speed=SPEED)


def status(
    speeds: Sequence[float] = (),
    errors: Sequence[int] = (),
    figures: Figures = FIGURES,
    speed: Speed = SPEED,
) -> str:
    """The result beside earlier partitions of these rows/s, and of these quarantined of 1,000."""
    fast = [Earlier(10, 0, replace(speed, rows_per_s=rate)) for rate in speeds]
    earlier = (*fast, *(Earlier(1_000, number) for number in errors))
    return REGRESSION.judge(Band(), figures, Past(earlier=earlier)).status


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ([], "off"),
        ([1_000.0] * 2, "off"),
        ([142.0, 142.0, 142.0], "pass"),
        ([143.0, 143.0, 143.0], "warn"),
        ([1.0, 1.0, 1.0], "pass"),
        ([100.0, 200.0, 300.0], "pass"),
        ([143.0] * 14 + [1.0] * 18, "warn"),
    ],
)
def test_it_warns_of_a_speed_below_the_band_of_the_last_ones(speeds: list[float], expected: str):
    assert status(speeds) == expected


@pytest.mark.parametrize(
    ("errors", "now", "expected"),
    [
        ([0, 0, 0], 10, "pass"),
        ([0, 0, 0], 11, "warn"),
        ([10, 40, 70], 160, "pass"),
        ([0, 0], 900, "off"),
    ],
)
def test_it_warns_of_more_errors_than_usual(errors: list[int], now: int, expected: str):
    figures = replace(FIGURES, num_quarantined=now, num_predicted=1_000 - now)
    assert status(errors=errors, figures=figures) == expected


@pytest.mark.parametrize("changes", [{"model": "n"}, {"hardware": "2 nodes"}, {"streaming_s": 9.0}])
def test_another_model_other_hardware_and_short_runs_are_no_measure(changes: dict[str, object]):
    assert status([1_000.0] * 3, speed=replace(SPEED, **changes)) == "off"
    assert (
        status([1_000.0] * 3, figures=replace(FIGURES, speed=replace(SPEED, streaming_s=9.0)))
        == "off"
    )


def test_the_gate_names_what_is_out():
    earlier = (Earlier(1_000, 0, replace(SPEED, rows_per_s=500.0)),) * 3
    result = REGRESSION.judge(Band(), FIGURES, Past(earlier=earlier))
    assert (result.value, result.limit) == (100.0, 350.0)
    assert "100 rows/s while streaming, median 500 of 3 earlier partitions" in result.message
    assert "0% quarantined" in result.message
