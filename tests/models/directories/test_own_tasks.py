"""Test that a task of another distribution takes the outputs of directories that it reduces."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import toy_package
from support.models.snapshots import make_snapshot
from support.runs.jobs import SOURCES, job_of
from toy_task import NAME, Spread

from pipeline.core import registry
from pipeline.core.errors import JobError
from pipeline.core.registry import TASKS
from pipeline.models.directories.opening import build_module, open_facts, read_facts
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import load_module
from pipeline.models.tasks.base import TaskSpec


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    """A directory whose facts are known before the path of imports changes, and with it the server
    of confined processes."""
    path = make_snapshot(tmp_path / "m", "bert", head="sequence", num_labels=3)
    open_facts(str(path), {}, "text")
    return path


@pytest.fixture
def _spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load.cache_clear()
    points = {TASKS: {NAME: "toy_task:Spread"}}
    monkeypatch.syspath_prepend(str(toy_package.install(tmp_path / "site", points)))


@pytest.mark.usefixtures("classifier", "_spread")
def test_a_job_may_name_it_with_model_path(classifier: Path):
    spec = resolve_model(job_of({"path": str(classifier), "task": NAME}, SOURCES["text"]))
    assert spec.task.kind == NAME
    assert spec.output_fields()[0].name == NAME
    loaded = load_module(spec)
    plain = build_module(classifier, read_facts(classifier), TaskSpec("classify"))
    ids = torch.tensor([[2, 50, 51, 3]])
    with torch.inference_mode():
        mask = torch.ones_like(ids)
        torch.testing.assert_close(loaded(ids, mask), plain(ids, mask))


@pytest.mark.usefixtures("_spread")
@pytest.mark.parametrize(
    ("reduces", "words"),
    [
        ((), "serves tokens, and the task reduces none (`reduces` of its class)"),
        (("classify", "embed"), "serves tokens, and the task reduces classify, embed"),
    ],
)
def test_outputs_that_it_does_not_reduce_are_refused_with_what_it_does(
    reduces: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = make_snapshot(tmp_path / "m", "bert", head="token", num_labels=3)
    monkeypatch.setattr(Spread, "reduces", reduces)
    with pytest.raises(JobError) as caught:
        build_module(folder, read_facts(folder), TaskSpec(NAME))
    assert words in str(caught.value)
