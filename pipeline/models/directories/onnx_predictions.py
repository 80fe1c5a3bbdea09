"""Predict a few rows by an .onnx file and ONNX Runtime: each row alone, unpadded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.models.directories.facts import DirectoryFacts, OnnxFile
from pipeline.models.directories.file_choice import onnx_file_of
from pipeline.models.directories.files import MODULES
from pipeline.models.directories.onnx.graph import open_session
from pipeline.models.directories.text.sentence_transformers import Opened
from pipeline.models.directories.text.tokens import library_tokens
from pipeline.models.spec import ModelSpec, load_module
from pipeline.models.tasks import make_task, task_class
from pipeline.preprocessing.texts.text_settings import IDS, MASK, TYPES

if TYPE_CHECKING:
    import torch


def onnx_predictions(view: Path, spec: ModelSpec, rows: Sequence[Sequence[str]]) -> pa.Table | None:
    """Return the task's columns of what an .onnx file gives for each row alone; None: nothing."""
    import torch

    from pipeline.models.onnx_module import OnnxModule

    assert spec.facts is not None, "it is a file"
    if task_class(spec.task.kind).is_per_token:
        return None
    outputs = _onnx_outputs(view, spec.facts, rows)
    if outputs is None:
        return None
    module = load_module(spec)
    assert isinstance(module, OnnxModule), "it is a file"
    if module.pooled is not None:
        outputs = [module.pool(vectors, torch.ones(vectors.shape[:2])) for vectors in outputs]
    task, table = make_task(spec.task), pa.table({"row_id": [*map(str, range(len(rows)))]})
    results = task.reduce(torch.cat(outputs), len(rows))
    arrays = {name: tensor.numpy() for name, tensor in results.items()}
    return pa.table(task.columns(arrays, np.ones(len(rows), np.bool_), table))


def _onnx_outputs(
    view: Path, facts: DirectoryFacts, rows: Sequence[Sequence[str]]
) -> list[torch.Tensor] | None:
    """Return the output that tasks take, of each text or pair of texts, by ONNX Runtime.

    Args:
        view: The view of the copy, with the tokenizer of the library.

    Returns:
        For each row (1, ...), for one of tokens (1, L, ...); None: the file takes one shape alone.
    """
    import torch

    file, text, path = facts.module, facts.text, onnx_file_of(view)
    assert isinstance(file, OnnxFile), "the facts are of a file"
    assert text is not None, "its rows are texts"
    assert path is not None, "its facts were read"
    if file.batch_size is not None or file.max_tokens is not None:
        return None
    if (view / MODULES).is_file():
        made = Opened(view, has_weights=False).tokens()
    else:
        made = library_tokens(view, "")
    session = open_session(str(path.resolve()))
    outputs = []
    for row in rows:
        tokens = {n: np.array([ids]) for n, ids in made.tokens_of(row, text.max_tokens).items()}
        ids = tokens[IDS]
        tokens = {MASK: np.ones_like(ids), TYPES: np.zeros_like(ids), **tokens}
        feeds = {end.name: tokens[end.name].astype(end.dtype) for end in file.inputs}
        [output] = session.run([file.output], feeds)
        outputs.append(torch.from_numpy(output))
    return outputs
