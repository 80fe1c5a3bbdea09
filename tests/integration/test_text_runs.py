"""Texts whose tokenising does not end, through the real command."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, WORDS_OF_LABELS
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import pipeline, write_job
from support.runs.published_rows import read_part, read_predictions
from tokenizers import Regex, pre_tokenizers

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.storage.store import Store

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
NUM_ROWS = 32
BACKTRACKS = r"a*a*#|\s"
"""Of n letters `a` and another one it tries n*n/2 ways from each of them: below the library's own
limit of ten million, and minutes in all."""
ENDLESS = ("a" * 4000 + "!") * 5 + "#"
ENDLESS_ROWS = (5, 30)


@pytest.mark.early
@pytest.mark.ray
@pytest.mark.slow
def test_texts_whose_tokenising_does_not_end_cost_only_themselves(tmp_path: Path) -> None:
    labels = {f"t{row:03d}": LABELS[row % len(LABELS)] for row in range(NUM_ROWS)}
    texts = [f"the {WORDS_OF_LABELS[label]} cat sat on mat" for label in labels.values()]
    texts = [ENDLESS if row in ENDLESS_ROWS else text for row, text in enumerate(texts)]
    (tmp_path / "in").mkdir()
    table = pa.table({"name": [*labels], "body": texts})
    for shard in range(2):
        rows = table.slice(shard * NUM_ROWS // 2, NUM_ROWS // 2)
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
