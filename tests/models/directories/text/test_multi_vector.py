"""Test that the vectors of tokens equal those of sentence-transformers' late interaction."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.models.library_cases import Case, require_scores_of_the_library
from support.models.snapshots import TEXTS, change_json, make_snapshot, write_json
from support.runs.jobs import SOURCES, job_of

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

LONG = " ".join(TEXTS * 20)
PUNCTUATED = "the dog, the cat; (rain) in - the city!"
DIM = 8
WEIGHTS = "model.safetensors"
ST, MASK = "config_sentence_transformers.json", "2_MultiVectorMask/config.json"


def saved(folder: Path, *more: Any, prompts: Any = None, **settings: Any) -> Path:
    """Return a directory as the library saves it, with modules behind the usual ones."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    torch.manual_seed(0)
    first = Transformer(str(make_snapshot(folder / "plain", "bert")))
    of_tokens = {"module_input_name": "token_embeddings"}
    width = first.get_embedding_dimension()
    dense = Dense(width, DIM, bias=False, activation_function=torch.nn.Identity(), **of_tokens)
    mask = MultiVectorMask(skiplist_words=["the", "!"])
    modules = [first, dense, mask, Normalize(**of_tokens), *more]
    MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu").save(str(folder / "saved"))
    change_json(folder / "saved" / ST, **settings)
    return folder / "saved"


def with_length(folder: Path) -> Path:
    path = saved(folder, prompts={"query": "rain ", "document": "the "})
    change_json(path / "sentence_bert_config.json", document_length=9)
    return path


def without(path: Path, name: str) -> Path:
    (path / name).unlink()
    return path


def of_pylate(folder: Path, **settings: Any) -> Path:
    """Return a directory as PyLate saves it: two modules, prefixes that are tokens, lengths."""
    from transformers import AutoModel, AutoTokenizer

    path = saved(folder)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.add_tokens(["[Q] ", "[D] "])
    tokenizer.save_pretrained(path)
    model = AutoModel.from_pretrained(path)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(path)
    modules = ["sentence_transformers.models.Transformer", "pylate.models.Dense.Dense"]
    names = [{"idx": i, "name": str(i), "type": name} for i, name in enumerate(modules)]
    entries = [{**names[0], "path": ""}, {**names[1], "path": "1_Dense"}]
    write_json(path / "modules.json", entries)
    dense = {"in_features": model.config.hidden_size, "out_features": DIM, "bias": False}
    identity = "torch.nn.modules.linear.Identity"
    write_json(path / "1_Dense" / "config.json", {**dense, "activation_function": identity})
    written = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "document_length": 11}
    flags = {"query_length": 32, "attend_to_expansion_tokens": False}
    write_json(path / ST, {"model_type": "ColBERT", "prompts": {}, **written, **flags, **settings})
    return path


def of_stanford(folder: Path, *, punctuation: bool = True) -> Path:
    """Return a directory as Stanford's library saves it: one file of weights, and settings."""
    from safetensors.torch import load_file, save_file

    path = make_snapshot(folder, "bert")
    tensors = {f"bert.{name}": value for name, value in load_file(path / WEIGHTS).items()}
    width = tensors["bert.embeddings.word_embeddings.weight"].shape[1]
    tensors["linear.weight"] = torch.rand(DIM, width, generator=torch.Generator().manual_seed(0))
    save_file(tensors, path / WEIGHTS, {"format": "pt"})
    change_json(path / "config.json", architectures=["HF_ColBERT"])
    marks = {"query_token_id": "rain", "doc_token_id": "city", "mask_punctuation": punctuation}
    write_json(path / "artifact.metadata", {**marks, "doc_maxlen": 13, "query_maxlen": 32})
    return path


def of_library(path: Path, rows: Any) -> list[Any]:
    from sentence_transformers import MultiVectorEncoder

    model = MultiVectorEncoder(str(path), device="cpu")
    return [vectors.tolist() for vectors in model.encode_document(list(rows))]


@pytest.mark.parametrize(
    "make",
    [
        saved,
        with_length,
        of_pylate,
        lambda path: of_pylate(path, skiplist_words=["dog"]),
        of_stanford,
        lambda path: without(of_stanford(path), "artifact.metadata"),
        lambda path: saved(path, truncate_dim=5),
        lambda path: saved(path, prompts={"corpus": "city "}),
    ],
    ids=[
        *("saved", "lengths", "pylate", "pylate's words", "stanford", "stanford's weights"),
        *("truncated", "prompt"),
    ],
)
def test_vectors_of_tokens_are_those_of_the_library(make: Callable[[Path], Path], tmp_path: Path):
    case = Case(make, of_library, lambda row: row["embeddings"])
    require_scores_of_the_library(case, tmp_path / "m", (*TEXTS, PUNCTUATED, "", LONG))


@pytest.mark.parametrize("make", [of_pylate, of_stanford])
def test_it_is_held_to_the_library(make: Callable[[Path], Path], tmp_path: Path):
    spec = resolve_model(job_of({"path": str(make(tmp_path))}, SOURCES["text"]))
    assert spec.task.kind == "multi_vector"
    assert spec.task.embedding_dim == DIM
    assert hold_to_library(spec).startswith("sentence-transformers ")


def test_tokens_that_are_skipped_have_no_vector(tmp_path: Path):
    path = saved(tmp_path)
    plain, with_more = of_library(path, ["dog cat", "the dog the cat"])
    assert len(plain) == len(with_more)


@pytest.mark.parametrize(
    ("columns", "difference"),
    [
        ([[1.0, 0.0], [0.0, 1.0]], ""),
        ([[1.0, 0.0]], "expected 2 vectors, found 1"),
        (
            [[1.0, 0.0], [1.0, 0.0]],
            "expected the same vector 2, found others: least cosine 0.00000",
        ),
    ],
)
def test_published_vectors_are_compared_one_by_one(columns: Any, difference: str):
    task = make_task(TaskSpec("multi_vector", embedding_dim=2))
    known = pa.table({"embeddings": [[[1.0, 0.0], [0.0, 1.0]]]})
    actual = pa.table({"embeddings": [columns]})
    limits = AgreementLimits(0.01, 0.999, 0.01)
    assert task.differences(known, actual, limits) == [difference]


def test_float16_vectors_are_written_as_such():
    task = make_task(TaskSpec("multi_vector", embedding_dim=2, embedding_type="float16"))
    outputs = {"embeddings": torch.ones(1, 3, 2), "kept": torch.tensor([[True, False, True]])}
    arrays = {name: value.numpy() for name, value in task.reduce(outputs, 1).items()}
    column = task.columns(arrays, np.array([True]), pa.table({}))["embeddings"]
    assert column.type == pa.list_(pa.list_(pa.float16(), 2))
    assert len(column[0]) == 2


def _pooling() -> Any:
    from sentence_transformers.multi_vector_encoder.modules import HierarchicalTokenPooling

    return HierarchicalTokenPooling(pool_factor=2)


@pytest.mark.parametrize(
    ("make", "model", "words"),
    [
        (lambda path: saved(path), {"task": "embed"}, "serves multi_vector"),
        (lambda path: saved(path), {"embedding_dim": 4}, "embedding_dim"),
        (lambda path: saved(path), {"pooling": "mean"}, "pooling"),
        (lambda path: saved(path, _pooling()), {}, "HierarchicalTokenPooling"),
        (
            lambda path: make_snapshot(path, "bert", pooling="mean"),
            {"task": "multi_vector"},
            "serves embed, zero_shot",
        ),
    ],
)
def test_what_is_not_run_is_refused_in_a_line(
    make: Callable[[Path], Path], model: dict[str, Any], words: str, tmp_path: Path
):
    with pytest.raises(JobError, match=words) as caught:
        resolve_model(job_of({"path": str(make(tmp_path / "m")), **model}, SOURCES["text"]))
    assert "\n" not in str(caught.value)
