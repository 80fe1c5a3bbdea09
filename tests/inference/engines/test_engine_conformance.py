"""Every engine follows the protocol, also one of another distribution."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import toy_engine
import toy_package
from support.runs.checkout import PYTHONPATH
from support.runs.predicting import BAD, PASS_THROUGH, config_of, images, is_predicted, rows_of

from pipeline.core.errors import JobError
from pipeline.core.figures.counters import Counters
from pipeline.core.registry import ENGINES, load, names
from pipeline.core.schema import CLASSIFY_FIELDS, LABEL_ID, SCORE, staged_schema
from pipeline.inference.engines import engine_class, open_engine
from pipeline.inference.engines.base import Engine
from pipeline.models.tasks import task_class

TASKS = {"torch": "classify", toy_engine.NAME: toy_engine.NAME}
"""Engine -> a task that it runs."""
ALL = pytest.mark.parametrize("name", TASKS)
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


def opened(name: str, **options: Any) -> Engine:
    return open_engine(config_of(FACTORY, task=TASKS[name], **options))


def predicted(engine: Engine, rows: pa.Table) -> list[dict[str, Any]]:
    """Predict rows; what comes out is complete, in order, and counted."""
    counters: Counters = {}
    found = engine.predict(rows, counters)
    found.validate(full=True)
    added = [*CLASSIFY_FIELDS, *config_of(FACTORY).spec.input.published_fields()]
    assert found.schema == staged_schema(list(PASS_THROUGH), added)
    assert found.column("row_id").to_pylist() == rows.column("row_id").to_pylist()
    assert found.column("n").to_pylist() == rows.column("n").to_pylist()
    assert counters["predict"]["rows_in"] == rows.column("error").null_count
    for stage in ("transfer", "predict"):
        entry = counters[stage]
        assert entry["rows_in"] == entry["rows_out"] + entry["rows_quarantined"]
    return found.to_pylist()


def test_every_engine_is_tried_here():
    assert set(names(ENGINES)) == {*TASKS, "broken"}


@ALL
def test_it_is_the_one_that_the_task_names(name: str):
    config = config_of(FACTORY, task=TASKS[name])
    assert task_class(TASKS[name]).engine == name
    assert engine_class(config.spec) is load(ENGINES, name)
    assert isinstance(open_engine(config), load(ENGINES, name))


@ALL
def test_every_row_has_a_prediction_or_keeps_its_failure(name: str):
    failures = [BAD, None, None, BAD, None]
    found = predicted(opened(name, batch_size=2), rows_of(images(5), failures))
    assert [is_predicted(row) for row in found] == [False, True, True, False, True]
    assert found[0]["message"] == BAD.message
    found = predicted(opened(name), rows_of(images(2), [BAD, BAD]))
    assert not any(map(is_predicted, found))


@ALL
def test_what_is_reduced_is_what_is_published(name: str):
    engine, rows = opened(name), rows_of(images(5))
    reduced = engine.reduce(config_of(FACTORY).spec.input.arrays(rows))
    found = predicted(engine, rows)
    assert reduced[LABEL_ID][:, 0].tolist() == [row["label_id"] for row in found]
    assert np.allclose(reduced[SCORE][:, 0], [row["score"] for row in found], atol=1e-6)


@ALL
def test_neighbours_change_nothing(name: str):
    engine, rows = opened(name, batch_size=3), rows_of(images(7))
    alone = [row for n in range(7) for row in predicted(engine, rows.slice(n, 1))]
    together = predicted(engine, rows)
    assert [row["label"] for row in alone] == [row["label"] for row in together]
    scores = [[row["score"] for row in each] for each in (alone, together)]
    assert np.allclose(*scores, atol=1e-6)


@ALL
def test_engines_agree_and_close(name: str):
    rows = rows_of(images(4))
    engine = opened(name)
    found = predicted(engine, rows)
    expected = predicted(opened("torch"), rows)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    assert not engine.awaits_reference_check
    engine.close()
    engine.close()  # what is closed stays closed


def test_a_broken_engine_is_one_line():
    with pytest.raises(JobError, match=r"'broken': .* of toys 1\.0 cannot be imported: Module"):
        load(ENGINES, "broken")


def test_finding_an_engine_imports_no_library_that_runs_models():
    code = (
        "import sys, pipeline.inference.engines as engines;"
        "print({'torch', 'transformers', 'ray'} & set(sys.modules), *engines.REGISTRY)"
    )
    env = {"PYTHONPATH": PYTHONPATH}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (done.stdout.strip(), done.returncode) == ("set() torch", 0), done.stderr
