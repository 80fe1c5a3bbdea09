"""Test that ONNX files of texts predict as ONNX Runtime does for a single text."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow as pa
import pytest
import torch
from onnx import helper, numpy_helper
from support.models import onnx_files
from support.models.library_cases import (
    NAMES,
    Case,
    Results,
    best,
    embedding,
    entities,
    of_encoder,
    of_tokens,
    require_scores_of_the_library,
)
from support.models.snapshots import (
    MAX_TOKENS,
    PAIRS,
    add_pooling,
    make_snapshot,
    write_json,
)
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.inference.library_check import hold_to_library
from pipeline.models.directories.opening import open_facts
from pipeline.models.resolving.resolve import resolve_model

ENCODER = {"vectors": "last_hidden_state"}
SEQUENCE, WORDS = {"first": "logits"}, {"words": "logits"}
UNTYPED = {"token_type_ids": 0}
UNMASKED = {**UNTYPED, "attention_mask": 1}


class Exported:
    """A snapshot of transformers, and its export."""

    def __init__(self, folder: Path) -> None:
        self.snapshot = make_snapshot(folder, "bert", "token", id2label=NAMES)
        self.model = onnx_files.exported_texts(self.snapshot)

    def write(
        self,
        folder: Path,
        outputs: Mapping[str, str],
        constants: Mapping[str, int] | None = None,
        place: str = "onnx/model.onnx",
    ) -> Path:
        """Write the directory that an exporter writes, without the weights of torch."""
        shutil.copytree(
            self.snapshot,
            folder,
            ignore=shutil.ignore_patterns("*.safetensors"),
            dirs_exist_ok=True,
        )
        path = folder / place
        path.parent.mkdir(exist_ok=True)
        return onnx_files.save(onnx_files.kept(self.model, outputs, constants), path)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(tmp_path_factory.mktemp("exported") / "bert")


def alone(path: Path, rows: Any) -> list[np.ndarray]:
    """What ONNX Runtime gives for each row by itself, unpadded."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path.parent.parent)
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    outputs = []
    for row in rows:
        tokens = tokenizer(*([row] if isinstance(row, str) else row), return_tensors="np")
        outputs.append(session.run(None, {name: tokens[name] for name in names})[0][0])
    return outputs


def means(path: Path, rows: Any) -> Results:
    return [vectors.mean(axis=0).tolist() for vectors in alone(path, rows)]


def firsts(path: Path, rows: Any) -> Results:
    return [vectors[0].tolist() for vectors in alone(path, rows)]


def probabilities(path: Path, rows: Any) -> Results:
    scores = torch.from_numpy(np.stack(alone(path, rows))).softmax(dim=1).tolist()
    return [dict(zip(NAMES.values(), row, strict=True)) for row in scores]


def test_the_exported_graph_is_the_model_with_its_mask(exported: Exported, tmp_path: Path):
    from transformers import AutoModelForTokenClassification

    path = exported.write(tmp_path / "d", WORDS)
    ids = np.arange(5, 27).reshape(2, 11)
    mask = (np.arange(11) < np.array([[11], [4]])).astype(np.int64)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    [logits] = onnxruntime.InferenceSession(path).run(None, feeds)
    model = AutoModelForTokenClassification.from_pretrained(exported.snapshot)
    with torch.inference_mode():
        expected = model(**{name: torch.from_numpy(values) for name, values in feeds.items()})
    np.testing.assert_allclose(logits, expected.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("constants", "outputs", "model", "library", "columns"),
    quick_cases(
        [
            (constants, *row)
            for constants in ({}, UNTYPED, UNMASKED)
            for row in (
                (ENCODER, {}, means, embedding),
                (ENCODER, {"pooling": "cls", "runtime": "onnxruntime"}, firsts, embedding),
                (ENCODER, {"runtime": "openvino"}, means, embedding),
                (SEQUENCE, {"task": "classify"}, probabilities, best),
            )
        ],
        lambda constants, outputs, model, *_: (
            not constants or (constants is UNMASKED and outputs is ENCODER and not model)
        ),
    ),
)
def test_batches_are_what_the_file_gives_for_each_text_alone(
    exported: Exported,
    tmp_path: Path,
    outputs: Mapping[str, str],
    model: Mapping[str, Any],
    library: Any,
    columns: Any,
    constants: Mapping[str, int],
):
    """A file without a mask, as some exporters leave it out, gets batches of one length."""
    case = Case(lambda folder: exported.write(folder, outputs, constants), library, columns, model)
    require_scores_of_the_library(case, tmp_path / "d")


def test_pairs_have_token_types_of_their_own(exported: Exported, tmp_path: Path):
    case = Case(lambda folder: exported.write(folder, SEQUENCE), probabilities, best, rows="pair")
    require_scores_of_the_library(case, tmp_path / "d")
    path = exported.write(tmp_path / "other", SEQUENCE, UNTYPED)
    typed, untyped = (alone(model, PAIRS) for model in (tmp_path / "d/onnx/model.onnx", path))
    assert np.abs(np.subtract(typed, untyped)).max() > 1e-3


def test_entities_are_those_of_the_library(exported: Exported, tmp_path: Path):
    case = Case(
        lambda folder: exported.write(folder, WORDS),
        lambda _, rows: of_tokens(exported.snapshot, rows),
        entities,
    )
    require_scores_of_the_library(case, tmp_path / "d")


@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "mean", "normalize": True},
        {"pooling": ["cls", "max"], "dense": 8, "max_seq_length": 6},
        {
            "pooling": "mean",
            "prompts": {"query": "query: "},
            "default_prompt": "query",
            "include_prompt": False,
        },
    ],
)
def test_vectors_are_those_of_sentence_transformers_around_it(
    exported: Exported, tmp_path: Path, options: Mapping[str, Any]
):
    whole = tmp_path / "whole"
    shutil.copytree(exported.snapshot, whole)
    add_pooling(whole, **options)

    def make(folder: Path) -> Path:
        shutil.copytree(whole, folder)
        return exported.write(folder, ENCODER)

    case = Case(make, lambda _, rows: of_encoder(whole, rows), embedding)
    require_scores_of_the_library(case, tmp_path / "d")


def spec_of(path: Path, **model: Any) -> Any:
    return resolve_model(job_of({"path": str(path), **model}, SOURCES["text"]))


def test_probes_hold_it_to_onnx_runtime(exported: Exported, tmp_path: Path):
    fields = pa.schema([("text", pa.large_string())])
    path = exported.write(tmp_path / "d", ENCODER)
    held = f"onnxruntime {onnxruntime.__version__} on 8 texts"
    assert hold_to_library(spec_of(path).fitted(fields)) == held
    add_pooling(tmp_path / "d", "mean", prompts={"q": "query: "}, default_prompt="q")
    assert hold_to_library(spec_of(path).fitted(fields)) == held
    model = onnx.load(path)
    [output] = model.graph.output
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", [output.name, "rows"], ["of_batch"]),
            helper.make_node("Sub", [output.name, "of_batch"], ["without_mean"]),
        ]
    )
    output.name = "without_mean"
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "rows"))
    onnx_files.save(model, path)
    with pytest.raises(JobError, match=r"onnxruntime .* something else for probe '.*embedding"):
        hold_to_library(spec_of(path).fitted(fields))


def test_files_beside_it_are_read(exported: Exported, tmp_path: Path):
    path = exported.write(tmp_path / "d", SEQUENCE)
    spec = spec_of(path)
    assert spec.input.text.tokenizer_uri == str(tmp_path / "d" / "tokenizer.json")
    assert spec.input.text.max_tokens == MAX_TOKENS
    assert spec.task.labels == tuple(NAMES.values())
    assert spec.shown_name == "model.onnx"
    before = spec.weights_sha256
    write_json(tmp_path / "d" / "config.json", {"id2label": {0: "x", 1: "y", 2: "z"}})
    assert spec_of(path).task.labels == ("x", "y", "z")
    assert spec_of(path).weights_sha256 != before


def test_a_file_in_the_folder_of_its_tokenizer_is_the_same(exported: Exported, tmp_path: Path):
    outer = spec_of(exported.write(tmp_path / "d", ENCODER))
    inner = spec_of(exported.write(tmp_path / "onnx", ENCODER, place="m.onnx"))
    assert inner.input.text.tokenizer_uri == str(tmp_path / "onnx" / "tokenizer.json")
    assert inner.facts.pooling == outer.facts.pooling
    assert inner.task == outer.task


def test_weights_beside_the_file_are_those_in_its_folder(exported: Exported, tmp_path: Path):
    path = exported.write(tmp_path / "d", ENCODER)
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="model.onnx_data")
    case = Case(lambda _: path, means, embedding)
    require_scores_of_the_library(case, tmp_path)


def test_a_vector_per_text_is_taken_as_it_is(exported: Exported, tmp_path: Path):
    outputs = {"vectors": "token_embeddings", "first": "sentence_embedding"}
    path = exported.write(tmp_path / "d", outputs)
    add_pooling(tmp_path / "d", "cls")
    spec = spec_of(path)
    assert (spec.task.kind, spec.task.embedding_dim) == ("embed", len(NAMES))
    assert "modules.json is not read: sentence_embedding is one vector per text already" in (
        spec.notes
    )
    with pytest.raises(JobError, match=r"model\.pooling: has no effect"):
        spec_of(path, pooling="cls")


def test_of_a_model_that_the_library_does_not_know_the_tokenizer_says_the_limit(
    exported: Exported, tmp_path: Path
):
    path = exported.write(tmp_path / "d", SEQUENCE)
    values = {"model_type": "new", "id2label": dict(enumerate(NAMES.values()))}
    write_json(tmp_path / "d" / "config.json", values)
    spec = spec_of(path)
    assert spec.input.text.max_tokens == MAX_TOKENS
    assert any("transformers" in note and "new" in note for note in spec.notes)
    (tmp_path / "d" / "tokenizer.json").unlink()
    with pytest.raises(JobError, match=r"text\.tokenizer: .* brings no tokenizer"):
        spec_of(path)


def test_labels_that_do_not_fit_the_output_are_not_taken(exported: Exported, tmp_path: Path):
    path = exported.write(tmp_path / "d", SEQUENCE)
    write_json(tmp_path / "d" / "config.json", {"model_type": "bert", "id2label": {0: "x", 1: "y"}})
    with pytest.raises(JobError, match=r"no class names; .* another model\.task: embed, regress"):
        spec_of(path)


def test_a_directory_of_onnx_alone_names_the_file(exported: Exported, tmp_path: Path):
    path = exported.write(tmp_path / "d", ENCODER)
    with pytest.raises(JobError, match=f"its weights are ONNX: name the file in .*: {path}"):
        open_facts(str(tmp_path / "d"), {}, "text")
