"""The load of a trial is what an actor pays: it is timed in a process that has loaded nothing yet,
unless the node cache keeps what was made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from support.runs.predicting import images, predictor, rows_of

from pipeline.inference.runtimes import all_runtimes
from pipeline.inference.runtimes.base import Runner
from pipeline.inference.runtimes.compile import RUNTIME
from pipeline.inference.runtimes.export import Exporter
from pipeline.models.agreement import AgreementLimits
from pipeline.runs.tuning.trials import measure

LIMITS = AgreementLimits(max_score_diff=0.1, min_cosine=0.9, max_relative_error=0.1)


@pytest.mark.parametrize(("exports", "num_opened"), [(False, 1), (True, 2)])
def test_a_model_is_opened_before_the_timed_load_only_if_the_node_cache_keeps_it(
    exports: bool, num_opened: int, monkeypatch: pytest.MonkeyPatch
):
    config = predictor("support.runs.predicting:convolved", runtime=RUNTIME.name)._config
    sample = config.spec.input.arrays(rows_of(images(8)))
    opened = []

    def open_eager(exporter: Exporter, *_: Any) -> Runner:
        opened.append(exporter)
        return Runner(exporter.load().run, is_static=False)

    monkeypatch.setattr(RUNTIME, "exports", exports)
    monkeypatch.setattr(RUNTIME, "open", open_eager)
    trial, _ = measure.try_out(config, sample, None, LIMITS, for_s=0.0)
    assert (trial.problem, trial.agreement_pct) == ("", 100.0)
    assert len(opened) == num_opened


def test_two_that_take_turns_are_told_apart_by_a_clock_of_coarse_ticks():
    config = predictor("support.runs.predicting:convolved")._config
    sample = config.spec.input.arrays(rows_of(images(8)))
    now = [0.0]

    class Fake:
        """Takes so many seconds a call."""

        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def reduce(self, inputs: object) -> None:
            now[0] += self.seconds

    fakes: Any = [Fake(0.004), Fake(0.001)]
    work = measure.Workload(config, sample)
    slow, fast = work.measure_both(fakes, lambda: now[0] - now[0] % 0.01, 1.5)
    rows = config.batch_size
    assert slow == pytest.approx(rows / 0.004, rel=0.05)
    assert fast == pytest.approx(rows / 0.001, rel=0.1)


def test_comparing_in_turns_keeps_each_row_of_each_way_and_times_them_apart():
    config = predictor("support.runs.predicting:convolved")._config
    now = [0.0]

    class Fake:
        """Keeps the first value of each row, plus its own number."""

        def __init__(self, number: int, seconds: float) -> None:
            self.number, self.seconds = number, seconds

        def reduce(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            now[0] += self.seconds
            [values] = inputs.values()
            return {"score": values.reshape(len(values), -1)[:, 0].astype(int) + self.number}

    [name] = config.spec.input.slots(config.limits_of_batch)
    shape = next(iter(config.spec.input.slots(config.limits_of_batch).values())).shape[1:]
    values = np.zeros((3 * config.batch_size + 1, *shape), np.uint8)
    values[:, 0, 0, 0] = np.arange(len(values))
    work = measure.Workload(config, {name: values})
    fakes: Any = [Fake(0, 0.5), Fake(100, 0.25)]
    (one, other), spent, size = work.compare_in_turns(fakes, slice(None, None, 2), lambda: now[0])
    expected = np.arange(0, len(values), 2)
    assert one["score"].tolist() == expected.tolist()
    assert other["score"].tolist() == (100 + expected).tolist()
    calls = -(-len(expected) // config.batch_size)
    assert spent == [0.5 * calls, 0.25 * calls]
    assert size == config.batch_size * calls


def test_compiled_models_are_not_in_the_node_cache():
    assert {each.name for each in all_runtimes() if not each.exports} >= {"eager", "compile"}
