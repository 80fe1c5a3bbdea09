"""No row is lost: a row that crashes, hangs or starves its process costs itself alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from models import LABELS, SIZE_PX, WORDS_OF_LABELS, Colours
from PIL import Image
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_part, read_predictions
from tokenizers import Regex, pre_tokenizers

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.early]

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS = 90
MARK = "TEST_CRASHES_RUN"
# Fill colours at which `models:deadly` does something to its process.
DEADLY = {
    "n-021-segfault": ((255, 0, 255), "native_crash"),
    "n-022-segfault": ((255, 0, 255), "native_crash"),
    "n-045-exit": ((255, 255, 0), "native_crash"),
    "n-070-hang": ((0, 255, 255), "timeout"),
    "n-071-memory": ((255, 255, 255), "out_of_memory"),
    "n-080-killed": ((0, 0, 0), "out_of_memory"),
}


def write_images(folder: Path) -> dict[str, np.ndarray]:
    """90 images of noise as large as the model's input, and the deadly ones among them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    base = rng.integers(40, 200, (NUM_ROWS, 1, 1, 3))
    noise = rng.integers(-30, 31, (NUM_ROWS, SIZE_PX, SIZE_PX, 3))
    images = {f"n-{i:03d}": p for i, p in enumerate((base + noise).astype(np.uint8))}
    for name, (colour, _) in DEADLY.items():
        images[name] = np.full((SIZE_PX, SIZE_PX, 3), colour, np.uint8)
    for name, pixels in images.items():
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return {f"{name}.png": pixels for name, pixels in images.items() if name not in DEADLY}


def predicted_undisturbed(images: dict[str, np.ndarray]) -> dict[str, tuple[str, float]]:
    """What the model says of each image where nothing crashes."""
    pixels = torch.from_numpy(np.stack(list(images.values()))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        scores = torch.softmax(Colours()(pixels.float() / 255), dim=1)
    best, at = scores.max(dim=1)
    labels = [LABELS[index] for index in at.tolist()]
    return dict(zip(images, zip(labels, best.tolist(), strict=True), strict=True))


def run(tmp_path: Path, factory: str, env: dict[str, str] | None = None, **sections: Any) -> Any:
    source = {"uri": str(tmp_path / "images"), "format": "images"}
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        model={"factory": factory, "labels": LABELS, "batch_size": 8},
        **sections,
    )
    return pipeline("run", job, "--date", DATE, "--json", env=env)


@pytest.mark.slow  # in `make test` test_poison_rows has rows that end their process
@pytest.mark.parametrize("decode_in", ["actors", "tasks"])
def test_rows_that_crash_stop_or_starve_the_model_cost_only_themselves(
    decode_in: str, tmp_path: Path
) -> None:
    images = write_images(tmp_path / "images")
    result = run(
        tmp_path,
        "models:deadly",
        env={MARK: str(tmp_path)},
        run={"slice_rows": 32, "row_timeout_s": 5},
        resources={"decode_in": decode_in, "max_actors": 2},
    )
    assert result.code == 0, result.stderr
    store = Store(str(tmp_path / "out"))
    manifest = current_manifest(store, Layout(PARTITION))
    assert manifest is not None
    [part] = manifest.quarantine_parts
    rows = read_part(store, part).to_pylist()
    assert {row["row_id"]: (row["stage"], row["reason"]) for row in rows} == {
        f"{name}.png": ("predict", reason) for name, (_, reason) in DEADLY.items()
    }
    predictions = read_predictions(str(tmp_path / "out"), PARTITION)
    expected = predicted_undisturbed(images)
    assert predictions.column("row_id").to_pylist() == sorted(expected)
    for row in predictions.to_pylist():
        label, score = expected[row["row_id"]]
        assert (row["label"], row["score"]) == (label, pytest.approx(score, abs=1e-6))
    verify_output(str(tmp_path / "out"), PARTITION, {})
    isolation = result.json["isolation"]
    assert isolation["quarantined"] == len(DEADLY) - 1  # MemoryError needs no child
    assert isolation["dead_processes"] >= isolation["quarantined"]
    assert [p for p in psutil.process_iter(["environ"]) if is_of(p, tmp_path)] == []


def is_of(process: psutil.Process, folder: Path) -> bool:
    """Tell whether a process was started in the run of this test."""
    return (process.info["environ"] or {}).get(MARK) == str(folder)


@pytest.mark.one_ray
@pytest.mark.slow
def test_a_model_that_crashes_while_it_is_loaded_ends_the_run(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    result = run(tmp_path, "models:unloadable", resources={"max_actors": 1})
    assert result.code == 7, result.stderr
    assert "loading it ended its process" in result.stderr


NUM_TEXTS = 32
BACKTRACKS = r"a*a*#|\s"
"""Of n letters `a` and another one it tries n*n/2 ways from each of them: below the library's own
limit of ten million, and minutes in all."""
ENDLESS = ("a" * 4000 + "!") * 5 + "#"
ENDLESS_ROWS = (5, 30)


@pytest.mark.slow
def test_texts_that_never_finish_tokenising_cost_only_themselves(tmp_path: Path) -> None:
    labels = {f"t{row:03d}": LABELS[row % len(LABELS)] for row in range(NUM_TEXTS)}
    texts = [f"the {WORDS_OF_LABELS[label]} cat sat on mat" for label in labels.values()]
    texts = [ENDLESS if row in ENDLESS_ROWS else text for row, text in enumerate(texts)]
    (tmp_path / "in").mkdir()
    table = pa.table({"name": [*labels], "body": texts})
    for shard in range(2):
        rows = table.slice(shard * NUM_TEXTS // 2, NUM_TEXTS // 2)
        pq.write_table(rows, tmp_path / "in" / f"s{shard}.parquet", row_group_size=8)
    tokenizer = make_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(BACKTRACKS), "removed")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    job = write_job(
        tmp_path / "job.yaml",
        {
            "uri": str(tmp_path / "in"),
            "format": "parquet",
            "text_column": "body",
            "id_column": "name",
        },
        str(tmp_path / "out"),
        model={"factory": "models:mentions", "labels": LABELS, "batch_size": 8},
        text={"tokenizer": str(tmp_path / "tokenizer.json"), "max_tokens": 16},
        transform=None,
        run={"slice_rows": 16, "row_timeout_s": 6},
        gates={"max_error_pct": 20, "min_rows": 10},
    )
    done = pipeline("run", job, "--date", DATE)
    assert done.code == 0, done.stderr
    store = Store(str(tmp_path / "out"))
    manifest = current_manifest(store, Layout(PARTITION))
    assert manifest is not None
    [part] = manifest.quarantine_parts
    bad = read_part(store, part, ["row_id", "stage", "reason"]).to_pylist()
    expected = [(f"t{row:03d}", "tokenize", "timeout") for row in ENDLESS_ROWS]
    assert [tuple(row.values()) for row in bad] == expected
    predictions = read_predictions(store.uri, PARTITION, columns=["row_id", "label"]).to_pylist()
    good = {name: label for name, label in labels.items() if int(name[1:]) not in ENDLESS_ROWS}
    assert [(row["row_id"], row["label"]) for row in predictions] == [*good.items()]
