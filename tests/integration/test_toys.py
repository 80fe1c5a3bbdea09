"""The package can be extended: a run uses a source, an input and a task from outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import toy_input
import toy_package
import toy_source
import toy_task
from support.inputs.encoded import base_image, png
from support.runs.checkout import PYTHONPATH
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_predictions

pytestmark = pytest.mark.no_ray

TOYS = {"pipeline.tasks": {toy_task.NAME: "toy_task:Spread"}}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which both distributions are installed."""
    site = tmp_path_factory.mktemp("site")
    toy_package.install(site, TOYS)
    toy_package.install(site, {**toy_source.POINTS, **toy_input.POINTS}, "toy-inputs")
    return {
        "PYTHONPATH": f"{PYTHONPATH}{os.pathsep}{site}",
        "PIPELINE_ALLOW_IMPORT": "models,toy_input",
    }


def test_a_run_uses_a_source_an_input_and_a_task_of_other_distributions(
    installed: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    images = [png(base_image(seed)) for seed in range(6)]
    lines = [image.hex() for image in images]
    (tmp_path / "in" / f"a{toy_source.TOY_FILES}").write_text("\n".join([*lines[:4], "xy", "00"]))
    (tmp_path / "in" / f"b{toy_source.TOY_FILES}").write_text("\n".join(lines[4:]))
    job = write_job(
        tmp_path / "job.yaml",
        {"uri": str(tmp_path / "in"), "format": "toy", "input": "toy"},
        str(tmp_path / "out"),
        model={"factory": "toy_input:sizes", "task": toy_task.NAME},
        transform=None,
        gates={"max_error_pct": 50.0},
        run={"slice_rows": 3},
    )
    command = ("run", job, "--json", "--date", "2026-11-24", "--allow-import", "toy_input")
    done = pipeline(*command, env=installed)
    assert done.code == 0, done.stderr
    stages = {stage["stage"]: stage for stage in done.json["stages"]}
    assert list(stages)[1:4] == ["read", toy_input.STAGE, "transfer"]
    assert stages[toy_input.STAGE]["rows_in"] == 7
    assert stages[toy_input.STAGE]["rows_quarantined"] == 1
    rows = read_predictions(str(tmp_path / "out"), "date=2026-11-24").to_pylist()
    value_by_id = {row["row_id"]: row[toy_task.NAME] for row in rows}
    ids = [*(f"a{toy_source.TOY_FILES}#{row}" for row in range(4)),
           *(f"b{toy_source.TOY_FILES}#{row}" for row in range(2))]  # fmt: skip
    assert value_by_id == {i: len(image) - 1.0 for i, image in zip(ids, images, strict=True)}
    again = pipeline(*command, env=installed)
    assert again.json["status"] == "nothing_to_do"
    assert pipeline("verify", str(tmp_path / "out"), env=installed).code == 0
