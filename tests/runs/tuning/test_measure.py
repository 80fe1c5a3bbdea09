"""Test that the load time of a trial is that of an actor: in a fresh process, with node cache."""

from __future__ import annotations

from typing import Any

import pytest
from support.runs.predicting import config_of, images, rows_of

from pipeline.inference.runtimes import all_runtimes
from pipeline.inference.runtimes.compile import RUNTIME
from pipeline.inference.runtimes.export import Exporter
from pipeline.inference.runtimes.runtime import Runner
from pipeline.models.agreement import AgreementLimits
from pipeline.preprocessing.model_input import BatchLimits
from pipeline.runs.tuning import measure
from pipeline.runs.tuning.measure import Workload
from pipeline.runs.tuning.selection import best_batch
from pipeline.runs.tuning.workload import Batches

LIMITS = AgreementLimits(max_score_diff=0.1, min_cosine=0.9, max_relative_error=0.1)


@pytest.mark.parametrize(("exports", "num_opened"), [(False, 1), (True, 2)])
def test_a_model_is_opened_before_the_timed_load_only_if_the_node_cache_keeps_it(
    exports: bool, num_opened: int, monkeypatch: pytest.MonkeyPatch
):
    config = config_of("support.runs.predicting:convolved", runtime=RUNTIME.name)
    sample = config.spec.input.arrays(rows_of(images(8)))
    opened = []

    def open_eager(exporter: Exporter, *_: Any) -> Runner:
        opened.append(exporter)
        return Runner(exporter.load().run, is_static=False)

    monkeypatch.setattr(RUNTIME, "exports", exports)
    monkeypatch.setattr(RUNTIME, "open", open_eager)
    monkeypatch.setattr(measure, "MEASURE_S", 0.0)
    trial, _ = measure.try_out(config, sample, None, LIMITS)
    assert (trial.problem, trial.agreement_pct) == ("", 100.0)
    assert len(opened) == num_opened


def test_compiled_models_are_not_in_the_node_cache():
    assert {runtime.name for runtime in all_runtimes() if not runtime.exports} >= {
        "eager",
        "compile",
    }


@pytest.mark.parametrize(("node_actors", "sizes"), [(1, [4, 8, 16]), (1 << 40, [4, 8])])
def test_other_batches_are_measured_as_memory_allows_and_the_best_is_kept(
    node_actors: int, sizes: list[int], monkeypatch: pytest.MonkeyPatch
):
    config = config_of("models:colours", 8)
    sample = config.spec.input.arrays(rows_of(images(32)))
    monkeypatch.setattr(measure, "MEASURE_S", 0.0)
    others = Batches([BatchLimits(4), BatchLimits(16)], node_actors)
    trial, _ = measure.try_out(config, sample, None, LIMITS, batches=others)
    rates = dict(trial.batches)
    assert (trial.problem, sorted(rates)) == ("", sizes)
    assert trial.rows_per_s == rates[trial.batch_size] > 0
    assert trial.batch_size == best_batch(rates)


def test_a_batch_that_fails_is_no_choice_and_costs_no_other(monkeypatch: pytest.MonkeyPatch):
    config = config_of("models:colours", 8)
    sample = config.spec.input.arrays(rows_of(images(32)))
    run, sizes = measure.Workload.warm_up, []

    def warm_up(self: Workload, engine: Any) -> None:
        sizes.append(len(self._batches[0].rows))
        if sizes[-1] == 16:
            raise RuntimeError("out of memory")
        run(self, engine)

    monkeypatch.setattr(measure, "MEASURE_S", 0.0)
    monkeypatch.setattr(Workload, "warm_up", warm_up)
    others = Batches([BatchLimits(4), BatchLimits(16)])
    trial, _ = measure.try_out(config, sample, None, LIMITS, batches=others)
    assert sizes == [8, 4, 16]
    assert dict(trial.batches)[16] == 0
    assert trial.batch_size in (4, 8)
