"""Embeddings of the real MiniLM equal those of sentence-transformers, and odd texts end as told."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from support.inputs.passages import passages
from support.models.minilm import Unreachable, fetch_minilm
from support.runs.cli import pipeline, write_job

from pipeline.commit.published.read import read_predictions
from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.model import Model
from pipeline.job.transform import Transform
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import BatchLimits, Limits

pytestmark = pytest.mark.early

MAX_TOKENS = 256
TEN_MB = b"word " * 2_000_000
NOT_UTF8 = b"caf\xe9 au lait"
ODD: dict[bytes | None, str | None] = {
    None: "null_input",
    b"": None,
    TEN_MB: "too_large",
    NOT_UTF8: "decode_error",
    "\N{GRINNING FACE} \N{CJK UNIFIED IDEOGRAPH-4E2D}".encode(): None,
    b"unbroken" * 2_000: None,
}
"""Texts beside passages -> the reason of quarantine, None if they are predicted."""


@pytest.fixture(scope="session")
def minilm() -> Path:
    try:
        return fetch_minilm()
    except Unreachable as error:
        pytest.skip(str(error))


@pytest.mark.slow
@pytest.mark.no_ray
@pytest.mark.parametrize("num_rows", [100, pytest.param(20_000, marks=pytest.mark.timeout(3600))])
def test_embeddings_equal_sentence_transformers(num_rows: int, minilm: Path, tmp_path: Path):
    texts = with_odd_texts(passages(num_rows))
    write_texts(tmp_path / "in" / "a.parquet", texts)
    source = {
        "uri": str(tmp_path / "in"),
        "format": "parquet",
        "text_column": "text",
        "id_column": "id",
    }
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        model={"path": str(minilm)},
        transform=None,
        sink={"partition": None},
        gates={"max_error_pct": 5.0},
    )
    result = pipeline("run", job, "--quiet", timeout_s=3000)
    assert result.code == 0, result.stderr
    assert quarantined(tmp_path / "out") == {
        f"r{n}": ODD[text] for n, text in enumerate(texts) if ODD.get(text) is not None
    }
    kept = [n for n, text in enumerate(texts) if ODD.get(text) is None]
    found = read_predictions(str(tmp_path / "out"))
    assert found.column("row_id").to_pylist() == [f"r{n}" for n in kept]
    whole = [decoded(texts[n]) for n in kept]
    counts = token_counts(minilm, whole)
    assert found.column("truncated").to_pylist() == [count > MAX_TOKENS for count in counts]
    assert found.column("num_tokens").to_pylist() == [min(n, MAX_TOKENS) for n in counts]
    assert any(count > MAX_TOKENS for count in counts)
    difference = np.abs(embeddings(found) - encode(minilm, whole))
    assert difference.max() <= 1e-5


@pytest.mark.slow  # test_input_conformance holds every row to one place in batches
def test_embeddings_do_not_depend_on_batches(minilm: Path):
    texts = ["", *passages(40)]
    spec = resolve_model(Model(path=str(minilm)), Transform(), input_name="text")
    expected = predict(spec, texts, BatchLimits(64, 4096))
    for limits in (BatchLimits(1), BatchLimits(7), BatchLimits(32, 512), BatchLimits(256, 16_384)):
        assert np.abs(predict(spec, texts, limits) - expected).max() <= 1e-6, limits


def with_odd_texts(texts: Sequence[str]) -> list[bytes | None]:
    """Put the odd texts between others: the first before all of them, the last after all."""
    found: list[bytes | None] = [text.encode() for text in texts]
    for index, odd in enumerate(ODD):
        found.insert(index * len(found) // (len(ODD) - 1), odd)
    return found


def write_texts(path: Path, texts: Sequence[bytes | None]) -> None:
    """Write bytes as a column of strings, as a careless writer does, with ids r0, r1, ..."""
    column = pa.array(texts, pa.large_binary()).view(pa.large_string())
    path.parent.mkdir()
    ids = [f"r{n}" for n in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": column}), path, row_group_size=100)


def decoded(text: bytes | None) -> str:
    assert text is not None
    return text.decode()


def quarantined(out: Path) -> dict[str, str]:
    rows = ds.dataset(out / "quarantine", format="parquet").to_table()
    columns = rows.select(["row_id", "reason"]).to_pydict()
    return dict(zip(*columns.values(), strict=True))


def token_counts(model: Path, texts: Sequence[str]) -> list[int]:
    """Return the tokens of each text, special ones included, as the tokenizer gives them uncut."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return [len(tokenizer.encode(text)) for text in texts]


def encode(model: Path, texts: Sequence[str]) -> npt.NDArray[Any]:
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(model), device="cpu", local_files_only=True)
    found: npt.NDArray[Any] = encoder.encode(list(texts), show_progress_bar=False)
    return found


def embeddings(rows: pa.Table) -> npt.NDArray[Any]:
    """Return the column `embedding` as (N, D)."""
    values = pc.list_flatten(rows.column("embedding")).to_numpy()
    found: npt.NDArray[Any] = values.reshape(rows.num_rows, -1)
    return found


def predict(spec: ModelSpec, texts: Sequence[str], limits: BatchLimits) -> npt.NDArray[Any]:
    """Embed texts as one slice, without Ray."""
    config = PredictorConfig(spec, limits.rows, 0.0, 2, pa.schema([]), batch_tokens=limits.tokens)
    rows = pa.table(
        {TEXT: pa.array(texts, pa.large_string()), **failure_columns([None] * len(texts))}
    )
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))
    [found] = TorchEngine(config).reduce(spec.input.arrays(prepared)).values()
    return found
