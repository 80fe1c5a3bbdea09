"""Cases of model directories whose scores are compared with those of the library.

Both sides see the same rows; nothing but the pipeline's own way to published columns is between
them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT, TEXT_PAIR
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.inference.library_check import compare
from pipeline.models.directories.snapshot import local
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits
from pipeline.preprocessing.texts.text_input import TextInput
from support.models.snapshots import PAIRS, TEXTS, make_snapshot
from support.runs.jobs import SOURCES, job_of

NAMES = {0: "cold", 1: "warm", 2: "hot"}
PROMPTS = ("a dog", "the cat sat on the mat", "rain in the city")
MULTI = {"id2label": NAMES, "problem_type": "multi_label_classification"}
ZERO_SHOT = {"task": "zero_shot", "prompts": PROMPTS}
Results = list[Any]
"""For each row: label -> score, or numbers, or entities."""


FEATURES = np.random.default_rng(0).normal(size=(96, 4)).astype(np.float32)


class Rows(NamedTuple):
    """Rows of one kind of input."""

    source: Mapping[str, Any]
    columns: Mapping[str, pa.Array]
    opened: Sequence[Any]
    """As the library takes them."""


def _texts(*columns: Sequence[str]) -> dict[str, pa.Array]:
    pairs = zip((TEXT, TEXT_PAIR), columns, strict=False)
    return {name: pa.array(texts, pa.large_string()) for name, texts in pairs}


ROWS = {
    "text": Rows(SOURCES["text"], _texts(TEXTS), TEXTS),
    "pair": Rows(
        {**SOURCES["text"], "text_pair_column": "other"}, _texts(*zip(*PAIRS, strict=True)), PAIRS
    ),
    "features": Rows(
        {**SOURCES["features"], "features": ["a", "b", "c", "d"]},
        {"features": pa.FixedSizeListArray.from_arrays(FEATURES.reshape(-1), FEATURES.shape[1])},
        FEATURES,
    ),
}


def embedding(row: dict[str, Any]) -> Any:
    return row["embedding"]


def best(row: dict[str, Any]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in row["top_k"]}


def entities(row: dict[str, Any]) -> list[tuple[int, int, str, float]]:
    return [(e["start"], e["end"], e["label"], e["score"]) for e in row["entities"]]


class Case(NamedTuple):
    """A directory, the library's own way over it, and ours."""

    make: Callable[[Path], Path]
    library: Callable[[Path, Any], Results]
    columns: Callable[[dict[str, Any]], Any]
    """The same of a published row."""
    model: Mapping[str, Any] = {}
    rows: str = "text"
    """One of ROWS."""
    tolerance: float = 1e-5
    """Absolute; of vectors with larger numbers as a share of the largest."""


class UntriedInput(TextInput):
    """Texts whose batches are padded, whatever padding changes."""

    def padding_trial(self) -> None:
        return None


def made(family: str, head: str = "none", **options: Any) -> Callable[[Path], Path]:
    return lambda folder: make_snapshot(folder, family, head, **options)


def of_pipeline(task: str, **options: Any) -> Callable[[Path, Any], Results]:
    """A pipeline of transformers with labels and scores."""

    def give(path: Path, rows: Any) -> Results:
        from transformers import pipeline

        results = pipeline(task, model=str(path), device="cpu")(list(rows), **options)
        return [{entry["label"]: entry["score"] for entry in row} for row in results]

    return give


def of_encoder(path: Path, rows: Any) -> Results:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").encode(list(rows)).tolist()


def of_tokens(path: Path, rows: Any) -> Results:
    from transformers import pipeline

    tag = pipeline("token-classification", str(path), aggregation_strategy="simple", device="cpu")
    return [
        [
            (entity["start"], entity["end"], entity["entity_group"], float(entity["score"]))
            for entity in row
        ]
        for row in tag(list(rows))
    ]


def compared(spec: ModelSpec) -> str:
    """Compare both ways in this process, as one that is lent the copy of the directory."""
    assert spec.directory is not None
    path = local(spec.directory)
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache)
        return compare(str(path), spec)


def published(case: Case, path: Path, texts: Sequence[str] = ()) -> Results:
    """Return what the pipeline publishes of the rows, or of texts, without Ray."""
    given = ROWS[case.rows]
    if texts:
        given = given._replace(columns=_texts(texts), opened=texts)
    spec = resolve_model(job_of({"path": str(path), **case.model}, given.source))
    fields = [pa.field(name, column.type) for name, column in given.columns.items()]
    spec, num_rows = spec.fitted(pa.schema(fields)), len(given.opened)
    columns = {
        "row_id": [str(row) for row in range(num_rows)],
        "uri": [""] * num_rows,
        **given.columns,
        **failure_columns([None] * num_rows),
    }
    prepared = spec.input.prepare(pa.table(columns), {}, Limits(1 << 30, 1 << 30))
    config = PredictorConfig(spec, 2, 0, 1, pa.schema([]), batch_tokens=128)
    table = TorchEngine(config).predict(prepared, {})
    assert table.column("error").null_count == num_rows, table.column("message")
    return [case.columns(row) for row in table.to_pylist()]


def require_scores_of_the_library(case: Case, folder: Path, texts: Sequence[str] = ()) -> None:
    path, rows = case.make(folder), texts or ROWS[case.rows].opened
    expected, published_rows = case.library(path, rows), published(case, path, texts)
    assert len(published_rows) == len(expected) == len(rows)
    for ours, theirs in zip(published_rows, expected, strict=True):
        if isinstance(theirs, dict):
            assert ours == pytest.approx(theirs, abs=case.tolerance)
        elif theirs and isinstance(theirs[0], tuple):
            assert [entry[:3] for entry in ours] == [entry[:3] for entry in theirs]
            ours, theirs = ([entry[3] for entry in row] for row in (ours, theirs))
            np.testing.assert_allclose(ours, theirs, atol=case.tolerance)
        else:
            atol = case.tolerance * max(1.0, np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, atol=atol)
