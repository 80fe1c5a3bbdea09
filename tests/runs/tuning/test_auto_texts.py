"""Test that `tune` tries batches of tokens for texts, and judges int8 by the cosine."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.models.snapshots import TEXTS, make_snapshot
from support.runs.cli import pipeline, write_job

pytestmark = pytest.mark.ray

TUNE_S = 600
NUM_ROWS = 96


def text_job(folder: Path, **model: object) -> str:
    make_snapshot(folder / "model", "bert", pooling="mean")
    (folder / "in").mkdir()
    texts = [" ".join([TEXTS[row % 3]] * (1 + row % 2)) for row in range(NUM_ROWS - 1)]
    table = pa.table({"id": range(NUM_ROWS), "text": [*texts, "the cat " * 100]})
    pq.write_table(table, folder / "in" / "texts.parquet")
    source = {
        "uri": str(folder / "in"),
        "format": "parquet",
        "text_column": "text",
        "id_column": "id",
    }
    return write_job(
        folder / "job.yaml",
        source,
        str(folder / "out"),
        model={"path": str(folder / "model"), **model},
        transform=None,
        resources=None,
        run={"slice_rows": 32},
    )


@pytest.mark.slow
@pytest.mark.timeout(TUNE_S + 300)
def test_tune_tries_batches_by_tokens_and_a_run_goes_by_it(tmp_path: Path) -> None:
    job = text_job(tmp_path, runtime="eager", precision="auto")
    tuned = pipeline("tune", job, "--json", timeout_s=TUNE_S)
    assert tuned.code == 0, tuned.stderr
    batches = tuned.json["batch_sizes"]
    assert {batch["batch"] for batch in batches} == {256, 1024, 4096}
    assert all(batch["rows_per_s"] > 0 for batch in batches)
    assert tuned.json["batch_tokens"] in {256, 1024, 4096}
    done = pipeline("run", job, "--json")
    assert done.code == 0, done.stderr
    model = done.json["model"]
    assert f"{model['runtime']} {model['precision']}" == tuned.json["chosen"]
    assert model["batch_tokens"] == tuned.json["batch_tokens"]


@pytest.mark.slow
def test_a_run_over_texts_in_int8_is_judged_by_the_cosine(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    job = text_job(tmp_path, runtime="onnxruntime", precision="int8")
    done = pipeline("run", job, "--json", "--set", "gates.min_cosine=0.9")
    assert done.code == 0, done.stderr
    model = done.json["model"]
    assert (model["runtime"], model["precision"]) == ("onnxruntime", "int8")
    assert 0.9 <= model["agreement_worst"] < 1
    [stored] = (tmp_path / "out" / "_control" / "models").iterdir()
    assert model["artefact_sha256"] == stored.stem
    again = pipeline("run", job, "--json", "--set", "gates.min_cosine=0.9")
    assert again.json["status"] == "nothing_to_do"
    other = tmp_path / "other"
    strict = ("--set", f"sink.uri={other}", "--set", "gates.min_cosine=1.0")
    refused = pipeline("run", job, "--json", *strict)
    assert refused.code == 2
    assert "onnxruntime int8" in refused.stderr
    assert not (other / "predictions").exists()
