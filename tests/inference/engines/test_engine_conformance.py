"""Test that every engine keeps the protocol, also one from another distribution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy_engine
import toy_package
from support.models.language_models import make_writer, prepared, writing
from support.runs.predicting import BAD, PASS_THROUGH, config_of, images, rows_of

from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, failure_columns
from pipeline.core.figures import Counters
from pipeline.core.registry import ENGINES, load, names
from pipeline.core.schema import LABEL_ID, OUTPUT_TEXT, SCORE, staged_schema
from pipeline.inference.engines import engine_class, open_engine
from pipeline.inference.engines.engine import Engine
from pipeline.models.spec import PredictorConfig
from pipeline.models.tasks import task_class
from pipeline.models.tasks.base import Arrays

TASKS = {
    "torch": "classify",
    "generate": "generate",
    "vllm": "generate",
    toy_engine.NAME: toy_engine.NAME,
}
"""Engine -> a task that it runs."""
WRITE = ("generate", "vllm")
IN_OTHER_ENVIRONMENTS = {"vllm": pytest.mark.vllm}
ALL = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=IN_OTHER_ENVIRONMENTS.get(n, ())) for n in TASKS]
)
FACTORY = "support.runs.predicting:convolved"
TOYS = {
    "pipeline.engines": {
        toy_engine.NAME: "toy_engine:OneByOne",
        "broken": "toy_engine_that_is_not_there:Engine",
    },
    "pipeline.tasks": {toy_engine.NAME: "toy_engine:ClassifyOneByOne"},
}


@pytest.fixture(autouse=True)
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(toy_package.install(tmp_path / "site", TOYS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("language") / "m"
    return make_writer(path, "llama", head_dim=32)  # vLLM has no kernels for smaller ones


class Subject:
    """An engine, and rows for a task that it runs."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self._folder = name, folder

    def config(self, batch_size: int = 32) -> PredictorConfig:
        if self.name in WRITE:
            spec = writing(self._folder, engine=self.name)
            return PredictorConfig(spec, batch_size, 0.0, 1, PASS_THROUGH, batch_tokens=512)
        return config_of(FACTORY, batch_size, task=TASKS[self.name])

    def opened(self, batch_size: int = 32) -> Engine:
        return open_engine(self.config(batch_size))

    def rows(self, count: int, failures: list[Failure | None] | None = None) -> pa.Table:
        if self.name not in WRITE:
            return rows_of(images(count), failures)
        rows = prepared(self.config().spec, ["cat " * (1 + n % 5) + str(n) for n in range(count)])
        rows = rows.append_column("n", pa.array(range(count), pa.int64()))
        for name, column in failure_columns(failures or [None] * count).items():
            rows = rows.set_column(rows.schema.get_field_index(name), name, column)
        return rows

    def answers(self, predicted_rows: list[dict[str, Any]]) -> list[Any]:
        return [row["text" if self.name in WRITE else "label_id"] for row in predicted_rows]

    def numbers(self, predicted_rows: list[dict[str, Any]]) -> list[float]:
        return [row["mean_logprob" if self.name in WRITE else "score"] for row in predicted_rows]

    def reduced(self, results: Arrays) -> tuple[list[Any], list[float]]:
        """Return the same of results that are not published."""
        if self.name not in WRITE:
            return results[LABEL_ID][:, 0].tolist(), results[SCORE][:, 0].tolist()
        return results[OUTPUT_TEXT].tolist(), results["mean_logprob"].tolist()


@pytest.fixture
def subject(name: str, folder: Path) -> Subject:
    return Subject(name, folder)


def predicted(subject: Subject, engine: Engine, rows: pa.Table) -> list[dict[str, Any]]:
    """Predict rows; what comes out is complete, in order, and counted."""
    counters: Counters = {}
    table = engine.predict(rows, counters)
    table.validate(full=True)
    assert table.schema == staged_schema(list(PASS_THROUGH), subject.config().spec.output_fields())
    assert table.column("row_id").to_pylist() == rows.column("row_id").to_pylist()
    assert table.column("n").to_pylist() == rows.column("n").to_pylist()
    assert counters["predict"]["rows_in"] == rows.column("error").null_count
    for stage in ("transfer", "predict"):
        entry = counters[stage]
        assert entry["rows_in"] == entry["rows_out"] + entry["rows_quarantined"]
    return table.to_pylist()


def test_every_engine_is_tried_here():
    assert set(names(ENGINES)) == {*TASKS, "broken"}


@ALL
def test_it_is_one_that_the_task_names(name: str, subject: Subject):
    config, task = subject.config(), task_class(TASKS[name])
    assert name in (task.engine, *task.other_engines)
    assert engine_class(config.spec) is load(ENGINES, name)
    assert isinstance(open_engine(config), load(ENGINES, name))


@ALL
def test_every_row_has_a_prediction_or_keeps_its_failure(name: str, subject: Subject):
    failures = [BAD, None, None, BAD, None]
    table = predicted(subject, subject.opened(2), subject.rows(5, failures))
    assert [row["error"] for row in table] == [f and f.reason for f in failures]
    assert [answer is None for answer in subject.answers(table)] == [bool(f) for f in failures]
    assert table[0]["message"] == BAD.message
    table = predicted(subject, subject.opened(), subject.rows(2, [BAD, BAD]))
    assert subject.answers(table) == [None, None]


@ALL
def test_what_is_reduced_is_what_is_published(name: str, subject: Subject):
    engine, rows = subject.opened(), subject.rows(5)
    answers, numbers = subject.reduced(engine.reduce(subject.config().spec.input.arrays(rows)))
    table = predicted(subject, engine, rows)
    assert answers == subject.answers(table)
    assert np.allclose(numbers, subject.numbers(table), atol=1e-6)


@ALL
def test_neighbours_change_nothing(name: str, subject: Subject):
    engine, rows = subject.opened(3), subject.rows(7)
    alone = [row for n in range(7) for row in predicted(subject, engine, rows.slice(n, 1))]
    together = predicted(subject, engine, rows)
    assert subject.answers(alone) == subject.answers(together)
    assert np.allclose(subject.numbers(alone), subject.numbers(together), atol=1e-5)


def test_engines_of_one_model_agree(folder: Path):
    by_engine = []
    for name in ("torch", toy_engine.NAME):
        subject = Subject(name, folder)
        by_engine.append(subject.answers(predicted(subject, subject.opened(), subject.rows(4))))
    assert by_engine[0] == by_engine[1]


@ALL
def test_what_is_closed_stays_closed(name: str, subject: Subject):
    engine = subject.opened()
    assert not engine.awaits_reference_check
    engine.close()
    engine.close()


def test_a_broken_engine_is_one_line():
    with pytest.raises(JobError, match=r"'broken': .* of toys 1\.0 cannot be imported: Module"):
        load(ENGINES, "broken")
