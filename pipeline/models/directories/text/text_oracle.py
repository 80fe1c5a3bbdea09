"""The predictions of a directory of texts by its own library: alone, unpadded, by its own ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.schema import (
    EMBEDDING,
    END,
    ENTITIES,
    ENTITY_TEXT,
    LABEL,
    SCORE,
    START,
    TEXT,
    TEXT_PAIR,
    VALUE,
)
from pipeline.models.directories import probes
from pipeline.models.directories.facts import TOWERS, DirectoryFacts, LibraryClass
from pipeline.models.directories.text.tokens import load_tokenizer, special_tokens
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.base import TaskSpec

_MOST_TOKENS = 1_024
"""Probes are not much longer where a model takes more: it takes time."""
_WRITTEN = (0, 1, 4, 5)
"""Texts that are continued: without special tokens, which stay text here, and short ones."""

Row = Mapping[str, Any]
Predict = Callable[[Sequence[str]], Row]


def text_columns(path: Path, spec: ModelSpec) -> dict[str, Sequence[str]]:
    """Return probes of texts, or of pairs: a column of each text."""
    text = spec.facts.text if spec.facts else None
    assert text is not None, "its rows are texts"
    special = special_tokens(load_tokenizer(path / text.tokenizer, text.overlay))
    most = min(text.max_tokens, _MOST_TOKENS)
    if spec.input.text is not None and spec.input.text.has_pair:
        first, second = zip(*probes.pairs(special, most), strict=True)
        return {TEXT: first, TEXT_PAIR: second}
    texts = probes.texts(special, most)
    return {TEXT: texts if spec.task.generation is None else [texts[n] for n in _WRITTEN]}


def text_predictions(
    path: Path, facts: DirectoryFacts, task: TaskSpec, rows: Sequence[Sequence[str]]
) -> list[Row | None] | None:
    """Return the columns of a task for some texts.

    Args:
        path: The directory.
        facts: Of it.
        task: A task that it serves.
        rows: Texts, or pairs of texts.

    Returns:
        Columns as they are published, or as golden rows have them, per row; None for a row over
        which the library fails. None: it has no way of its own to this task.

    Raises:
        JobError: The library fails over each row.
    """
    predict = _way(path, facts, task, is_pair=len(rows[0]) == 2)
    if predict is None:
        return None
    results: list[Row | None] = [None] * len(rows)
    errors = []
    # A model may keep the mode that its first text has chosen: BigBird does, of short ones.
    for place in sorted(range(len(rows)), key=lambda row: -sum(map(len, rows[row]))):
        try:
            results[place] = predict(rows[place])
        except Exception as error:  # noqa: BLE001  # the library fails over texts in many ways
            errors.append(clean_message(f"{type(error).__name__}: {error}", 200))
    if len(errors) == len(rows):
        raise JobError(f"model.path: its library fails over each probe: {errors[0]}")
    return results


def _way(path: Path, facts: DirectoryFacts, task: TaskSpec, *, is_pair: bool) -> Predict | None:
    """Return what predicts a row by the library; None if nothing does."""
    head = facts.module.head if isinstance(facts.module, LibraryClass) else ""
    if task.kind == "score":
        return _scores(path) if is_pair else None
    if task.kind == "embed":
        if facts.format_name == "sentence_transformers":
            return _encode(path)
        return _features(path, facts) if head == TOWERS else _means(path, facts)
    if task.kind == "zero_shot":
        return None if facts.labels is None else _entailment(path, task)
    if task.kind == "tokens":
        return _entities(path, task)
    if task.kind in ("classify", "multilabel", "regress"):
        return _classify(path, facts, task)
    return None


def _pipeline(name: str, path: Path, **options: Any) -> Any:
    import torch
    from transformers import pipeline

    given = {"model": str(path), "device": "cpu", "dtype": torch.float32, **options}
    return pipeline(name, **given)


def _classify(path: Path, facts: DirectoryFacts, task: TaskSpec) -> Predict:
    run = _pipeline("text-classification", path, top_k=None)
    functions = {"classify": "softmax", "multilabel": "sigmoid", "regress": "none"}
    # The first task is what the library does by itself, but that it makes a score of a number.
    is_default = task.kind == facts.tasks[0] and task.kind != "regress"
    options = {} if is_default else {"function_to_apply": functions[task.kind]}

    def predict(row: Sequence[str]) -> Row:
        given = dict(zip(("text", "text_pair"), row, strict=False))
        entries = run(given, truncation=True, **options)
        if task.kind == "regress":
            values = {entry["label"]: entry["score"] for entry in entries}
            names = task.targets or (VALUE,)
            return {
                name: values[label] for name, label in zip(names, facts.labels or (), strict=True)
            }
        return probes.labelled(task, ((entry["label"], entry["score"]) for entry in entries))

    return predict


def _entailment(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("zero-shot-classification", path)

    def predict(row: Sequence[str]) -> Row:
        given = run(row[0], [*task.prompts], hypothesis_template="{}")
        return probes.labelled(task, zip(given["labels"], given["scores"], strict=True))

    return predict


def _entities(path: Path, task: TaskSpec) -> Predict:
    run = _pipeline("token-classification", path, aggregation_strategy=task.aggregation)

    def predict(row: Sequence[str]) -> Row:
        return {
            ENTITIES: [
                {
                    START: entity["start"],
                    END: entity["end"],
                    ENTITY_TEXT: row[0][entity["start"] : entity["end"]],
                    LABEL: entity["entity_group"],
                    SCORE: float(entity["score"]),
                }
                for entity in run(row[0])
            ]
        }

    return predict


def _scores(path: Path) -> Predict | None:
    try:
        from sentence_transformers import CrossEncoder
    except ImportError:
        return None
    import torch

    model = CrossEncoder(str(path), device="cpu", local_files_only=True,
                         model_kwargs={"dtype": torch.float32})  # fmt: skip
    return lambda row: {SCORE: float(model.predict(tuple(row)))}


def _encode(path: Path) -> Predict:
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path), device="cpu", local_files_only=True,
                                model_kwargs={"dtype": torch.float32})  # fmt: skip
    return lambda row: {EMBEDDING: model.encode(row[0]).tolist()}


def _means(path: Path, facts: DirectoryFacts) -> Predict:
    """Return the mean of the vectors of the tokens, special ones included."""
    import torch
    import transformers

    assert isinstance(facts.module, LibraryClass), "it is of transformers"
    cls = getattr(transformers, facts.module.built)
    model = cls.from_pretrained(path, local_files_only=True, dtype=torch.float32)
    run = _pipeline("feature-extraction", path, model=model, tokenizer=str(path))

    def predict(row: Sequence[str]) -> Row:
        [vectors] = run(row[0], truncation=True, return_tensors=True)
        return {EMBEDDING: vectors.mean(dim=0).tolist()}

    return predict


def _features(path: Path, facts: DirectoryFacts) -> Predict:
    """Return the vectors of texts as the library compares them with those of images."""
    from PIL import Image

    run = _pipeline("zero-shot-image-classification", path)
    image, most = Image.new("RGB", (32, 32)), facts.text.max_tokens if facts.text else None

    def predict(row: Sequence[str]) -> Row:
        import torch

        given = run.preprocess(
            image,
            candidate_labels=[row[0]],
            hypothesis_template="{}",
            tokenizer_kwargs={"truncation": True, "max_length": most},
        )
        with torch.inference_mode():
            made = run.model.get_text_features(**given["text_inputs"][0])
        vectors = made if isinstance(made, torch.Tensor) else made.pooler_output
        return {EMBEDDING: vectors[0].tolist()}

    return predict
