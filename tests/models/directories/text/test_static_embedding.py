"""Test that static embeddings of sentence-transformers and model2vec give `encode`'s vectors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models.library_cases import (
    Case,
    embedding,
    of_encoder,
    published,
    require_scores_of_the_library,
)
from support.models.snapshots import TEXTS, change_json, write_json, write_tokenizer
from support.runs.jobs import SOURCES, job_of
from tokenizers import Tokenizer

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.models.directories.text.sentence_transformers import Opened
from pipeline.models.resolving.resolve import resolve_model

Make = Callable[[Path], Path]
WEIGHTS, PROMPTS = "model.safetensors", "config_sentence_transformers.json"
ROWS = (*TEXTS, "", " ", "a", "Caf\u00e9 \U0001f600 [CLS] the cat [SEP]", " ".join(TEXTS * 4))
LONG = (" ".join(TEXTS * 100), "a")


def saved(*steps: Callable[[Any], Any], **truncation: Any) -> Make:
    """Return what saves static vectors of 16 numbers and some modules.

    Args:
        steps: Make a module of the library's modules.
        truncation: Of the tokenizer; it has none if this is empty.
    """

    def make(folder: Path) -> Path:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer import modules

        write_tokenizer(folder / "base", "bert")
        tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
        tokenizer.no_truncation()
        if truncation:
            tokenizer.enable_truncation(**truncation)
        drawn = torch.Generator().manual_seed(0)
        vectors = torch.randn(tokenizer.get_vocab_size(), 16, generator=drawn)
        static = modules.StaticEmbedding(tokenizer, embedding_weights=vectors)
        parts = [static, *(step(modules) for step in steps)]
        SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "m"))
        return folder / "m"

    return make


def at_the_top(make: Make, *parts: str, dtype: torch.dtype = torch.float32) -> Make:
    """Return what puts the vectors beside modules.json, by the names of model2vec.

    Args:
        parts: `mapping` and `weights`, which stand beside the vectors.
    """

    def move(folder: Path) -> Path:
        path = make(folder)
        [at] = {file.parent for file in path.rglob(WEIGHTS)}
        vectors = load_file(at / WEIGHTS)["embedding.weight"]
        beside = {"mapping": torch.arange(len(vectors)) // 2, "weights": vectors[:, 0].double()}
        tensors = {"embeddings": vectors.to(dtype), **{name: beside[name] for name in parts}}
        save_file(tensors, at / WEIGHTS)
        for name in (WEIGHTS, "tokenizer.json"):
            (at / name).rename(path / name)
        steps = json.loads((path / "modules.json").read_text())
        steps[0]["path"] = "."
        write_json(path / "modules.json", steps)
        write_json(path / "config.json", {"model_type": "model2vec", "normalize": True})
        return path

    return move


def changed(make: Make, **changes: Any) -> Make:
    def change(folder: Path) -> Path:
        path = make(folder)
        change_json(path / PROMPTS, **changes)
        return path

    return change


def without_vectors(folder: Path) -> Path:
    path = PLAIN(folder)
    [file] = path.rglob(WEIGHTS)
    save_file({"embedding.weight": load_file(file)["embedding.weight"][:-1].clone()}, file)
    return path


def normalised(modules: Any) -> Any:
    return modules.Normalize()


def dense(modules: Any) -> Any:
    return modules.Dense(16, 8)


PLAIN, NORMALISED = saved(), saved(normalised)
PROMPT = {"prompts": {"query": "the river: "}, "default_prompt_name": "query"}
EQUAL: dict[str, Make] = {
    "vectors alone": PLAIN,
    "normalised": NORMALISED,
    "dense layer": saved(dense, normalised),
    "prompt": changed(NORMALISED, **PROMPT),
    "truncated": changed(NORMALISED, truncate_dim=8),
    "texts cut": saved(normalised, max_length=7),
    "model2vec": at_the_top(NORMALISED),
    "model2vec with a mapping and weights": at_the_top(PLAIN, "mapping", "weights"),
}
REFUSED: dict[str, tuple[Make, str]] = {
    "quantised": (at_the_top(PLAIN, dtype=torch.int8), "tensors of type I8 .*quantised weights"),
    "too few vectors": (without_vectors, r"has token \d+, of \d+ vectors"),
    "starts cut": (saved(max_length=7, direction="left"), "truncation has direction left"),
    "pooled": (saved(lambda modules: modules.Pooling(16)), "Pooling of .* behind Pooling"),
    "of a cross-encoder": (changed(PLAIN, model_type="CrossEncoder"), "in a CrossEncoder"),
}


@pytest.mark.parametrize("name", EQUAL)
def test_vectors_are_those_of_encode(name: str, tmp_path: Path):
    case = Case(EQUAL[name], of_encoder, embedding, tolerance=1e-6)
    require_scores_of_the_library(case, tmp_path, ROWS)


def test_vectors_of_long_texts_are_those_of_encode_in_double_precision(tmp_path: Path):
    def in_double_precision(path: Path, rows: Any) -> Any:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(str(path), device="cpu").double().encode(list(rows)).tolist()

    case = Case(NORMALISED, in_double_precision, embedding, tolerance=1e-6)
    require_scores_of_the_library(case, tmp_path, LONG)


def test_texts_without_a_token_have_zeros(tmp_path: Path):
    case = Case(NORMALISED, of_encoder, embedding)
    assert published(case, NORMALISED(tmp_path), ["", " "]) == [[0.0] * 16] * 2


def test_a_prefix_of_the_job_stands_before_each_text(tmp_path: Path):
    path = changed(NORMALISED, **PROMPT)(tmp_path)
    source, prefix = SOURCES["text"], {"text": {"prefix": "a dog "}}
    assert resolve_model(job_of({"path": str(path)}, source)).input.text.prefix == "the river: "
    assert (
        resolve_model(job_of({"path": str(path)}, source, **prefix)).input.text.prefix == "a dog "
    )


def test_vectors_of_half_precision_are_held_to_the_library(tmp_path: Path):
    path = at_the_top(NORMALISED, dtype=torch.float16)(tmp_path)
    spec = resolve_model(job_of({"path": str(path)}, SOURCES["text"]))
    assert spec.task.kind == "embed"
    assert hold_to_library(spec).startswith("sentence-transformers ")


@pytest.mark.parametrize("name", REFUSED)
def test_other_directories_are_refused_in_a_line(name: str, tmp_path: Path):
    make, words = REFUSED[name]
    with pytest.raises(JobError, match=words) as caught:
        resolve_model(job_of({"path": str(make(tmp_path))}, SOURCES["text"]))
    assert "\n" not in str(caught.value)


def test_an_onnx_file_beside_static_vectors_is_refused(tmp_path: Path):
    with pytest.raises(JobError, match=r"has StaticEmbedding beside an \.onnx file"):
        Opened(PLAIN(tmp_path), has_weights=False)


def test_pairs_are_refused(tmp_path: Path):
    source = {**SOURCES["text"], "text_pair_column": "other"}
    with pytest.raises(JobError, match="takes single texts"):
        resolve_model(job_of({"path": str(PLAIN(tmp_path))}, source))


def test_windows_are_refused(tmp_path: Path):
    text = {"windows": {"tokens": 8, "overlap": 2}}
    with pytest.raises(JobError, match="nor for static embeddings; leave it out"):
        resolve_model(job_of({"path": str(PLAIN(tmp_path))}, SOURCES["text"], text=text))
