"""Texts through the real command: bad ones, odd ones, and those that a tokenizer never ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import LABELS, WORDS_OF_LABELS
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import Result, pipeline, write_job
from support.runs.published_rows import read_part, read_predictions
from tokenizers import Regex, pre_tokenizers

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import current_manifest
from pipeline.commit.published.verify import verify_output
from pipeline.storage.store import Store

pytestmark = pytest.mark.early

DATE = "2026-11-24"
PARTITION = f"date={DATE}"
MAX_TEXT_BYTES = 1 << 20
Text = str | bytes | None


def good_text(number: int) -> str:
    """A text whose label is that of its number."""
    return f"the {WORDS_OF_LABELS[label_of(number)]} cat sat {'on ' * (number % 7)}mat"


def label_of(number: int) -> str:
    return LABELS[number % len(LABELS)]


def write_texts(folder: Path, texts: Sequence[Text], num_shards: int = 2) -> None:
    """Shards of texts, as bytes, so that they need not be UTF-8."""
    folder.mkdir()
    data = [text.encode() if isinstance(text, str) else text for text in texts]
    size = -(-len(data) // num_shards)
    for shard in range(num_shards):
        rows = range(shard * size, min(len(data), (shard + 1) * size))
        table = {"name": [f"t{row:03d}" for row in rows], "body": [data[row] for row in rows]}
        pq.write_table(pa.table(table), folder / f"s{shard}.parquet", row_group_size=8)


def job_of(
    tmp_path: Path, factory: str = "models:mentions", pattern: str = "", **sections: Any
) -> str:
    """Write a job that labels the texts; its tokenizer splits at a pattern, if one is given."""
    tokenizer = make_tokenizer()
    if pattern:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    source = {
        "uri": str(tmp_path / "in"),
        "format": "parquet",
        "text_column": "body",
        "id_column": "name",
        "max_text_bytes": MAX_TEXT_BYTES,
    }
    return write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        **{
            "model": {"factory": factory, "labels": LABELS, "batch_size": 8},
            "text": {"tokenizer": str(tmp_path / "tokenizer.json"), "max_tokens": 16},
            "transform": None,
            "run": {"slice_rows": 8},
            **sections,
        },
    )


def quarantine_of(out: Path) -> dict[str, dict[str, Any]]:
    store = Store(str(out))
    manifest = current_manifest(store, Layout(PARTITION))
    assert manifest is not None
    rows = [row for part in manifest.quarantine_parts for row in read_part(store, part).to_pylist()]
    return {row["row_id"]: row for row in rows}


def reasons_of(out: Path) -> dict[str, tuple[str, str]]:
    return {name: (row["stage"], row["reason"]) for name, row in quarantine_of(out).items()}


def require_labels(out: Path, numbers: Sequence[int]) -> None:
    """Every other row is predicted, in order, with its own label."""
    predictions = read_predictions(str(out), PARTITION)
    assert predictions.column("row_id").to_pylist() == [f"t{number:03d}" for number in numbers]
    assert predictions.column("label").to_pylist() == [label_of(number) for number in numbers]


def run(job: str, *more: str, command: str = "run") -> Result:
    return pipeline(command, job, "--date", DATE, "--json", *more)


BAD: dict[int, tuple[Text, str]] = {
    3: (None, "null_input"),
    9: (b"the \xff cat", "decode_error"),
    10: (b"\xed\xa0\x80 half of a pair", "decode_error"),
    20: ("the red cat " * 900_000, "too_large"),
    21: (b"\xff" * (10 << 20), "too_large"),
}
ODD = {11: "", 12: " \t\n", 13: "red " * (MAX_TEXT_BYTES // 4), 14: "\0 red \u200d \U0001f600"}


@pytest.mark.no_ray
def test_bad_texts_are_quarantined_and_odd_ones_predicted(tmp_path: Path) -> None:
    numbers = [row for row in range(32) if row not in BAD]
    texts = [BAD[row][0] if row in BAD else ODD.get(row, good_text(row)) for row in range(32)]
    write_texts(tmp_path / "in", texts)
    refused = run(job_of(tmp_path, gates={"max_error_pct": 10, "min_rows": 10}))
    assert refused.code == 3, refused.stderr
    assert "max_error_pct" in refused.stderr
    assert not (tmp_path / "out" / "predictions").exists()

    done = run(job_of(tmp_path, gates={"max_error_pct": 20, "min_rows": 10}))
    assert done.code == 0, done.stderr
    rows = done.json["rows"]
    assert (rows["total"], rows["predicted"], rows["quarantined"]) == (32, 27, 5)
    assert rows["resumed"] >= 24, "a refused run's work is used"
    out = tmp_path / "out"
    quarantine = quarantine_of(out)
    assert reasons_of(out) == {f"t{row:03d}": ("read", why) for row, (_, why) in BAD.items()}
    assert quarantine["t020"]["num_bytes"] == len("the red cat " * 900_000)
    assert "10800000 bytes, the limit is 1048576" in quarantine["t020"]["message"]
    assert "not UTF-8, at byte 4" in quarantine["t009"]["message"]
    table = read_predictions(str(out), PARTITION)
    assert table.column("row_id").to_pylist() == [f"t{row:03d}" for row in numbers]
    by_id = {row["row_id"]: row for row in table.to_pylist()}
    assert [by_id[f"t{row:03d}"]["num_tokens"] for row in ODD] == [2, 2, 16, 4]
    assert [row for row in numbers if by_id[f"t{row:03d}"]["truncated"]] == [13]
    assert by_id["t013"]["label"] == by_id["t014"]["label"] == "red"
    verify_output(str(out), PARTITION, {})


BACKTRACKS = r"a*a*#|\s"
"""Of n letters `a` and another one it tries n*n/2 ways from each of them: below the library's own
limit of ten million, and minutes in all."""
ENDLESS = ("a" * 4000 + "!") * 5 + "#"


@pytest.mark.ray
@pytest.mark.slow
def test_texts_whose_tokenising_does_not_end_cost_only_themselves(tmp_path: Path) -> None:
    texts = [ENDLESS if row in (5, 30) else good_text(row) for row in range(32)]
    write_texts(tmp_path / "in", texts)
    job = job_of(
        tmp_path,
        pattern=BACKTRACKS,
        run={"slice_rows": 16, "row_timeout_s": 6},
        gates={"max_error_pct": 20, "min_rows": 10},
    )
    done = run(job)
    assert done.code == 0, done.stderr
    require_labels(tmp_path / "out", [row for row in range(32) if row not in (5, 30)])
    assert reasons_of(tmp_path / "out") == {
        name: ("tokenize", "timeout") for name in ("t005", "t030")
    }


@pytest.mark.ray
@pytest.mark.slow
def test_a_tokenizer_that_never_ends_is_no_endless_run(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", [ENDLESS] * 12)
    done = run(job_of(tmp_path, pattern=BACKTRACKS, run={"slice_rows": 12, "row_timeout_s": 3}))
    assert done.code == 3, done.stderr
    assert "max_error_pct" in done.stderr
    assert "12 of 12 rows quarantined" in done.stderr
    assert not (tmp_path / "out" / "predictions").exists()
