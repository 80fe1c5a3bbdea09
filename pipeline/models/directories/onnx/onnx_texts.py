"""Facts from the files beside an .onnx file of texts: tokenizer, limits, labels, pooling.

The installed library makes the model of config.json without weights, for its limits. A model that
it does not know runs all the same: the file is its code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import (
    MODES,
    DirectoryFacts,
    OnnxFile,
    Pooling,
    TensorFacts,
    TextFacts,
    fixed,
)
from pipeline.models.directories.files import CONFIG, MODULES, TOKENIZER, read_object
from pipeline.models.directories.library import base_of, config_of, quiet, refused
from pipeline.models.directories.model_class import labels_of, score_activation, tasks_of
from pipeline.models.directories.text.sentence_transformers import Opened
from pipeline.models.directories.text.text_facts import pooling_note, text_notes, text_of
from pipeline.preprocessing.texts.text_settings import TYPES

if TYPE_CHECKING:
    import torch

_MEAN = f"no {MODULES}: pooling mean, without normalisation"


def with_files_beside(folder: Path, facts: DirectoryFacts, main: TensorFacts) -> DirectoryFacts:
    """Complete the facts of a file that takes token ids.

    Args:
        folder: The copy, as `choose_onnx` chose it.
        main: The output that tasks take.

    Raises:
        JobError: A file beside it is damaged, or not read.
    """
    assert isinstance(facts.module, OnnxFile), "the facts are of a file"
    values = read_object(folder, CONFIG, optional=True)
    opened = Opened(folder, has_weights=False) if (folder / MODULES).is_file() else None
    module, problem = (opened.chosen.module, "") if opened else _library_module(values)
    text = None
    if (folder / TOKENIZER).is_file():
        text = opened.text(folder) if opened else text_of(folder, "", module)
        text = _fitted(text, facts.module)
    notes = [*([f"{CONFIG}: {problem}"] if problem else []), *(text_notes(text) if text else ())]
    more: dict[str, Any] = {"text": text}
    if facts.tasks[0] == "embed":
        pooled, note = _pooled(opened, main)
        more |= pooled
        notes.append(note)
    elif values and facts.tasks[0] in ("classify", "tokens"):
        is_cross_encoder = opened is not None and opened.is_cross_encoder
        more |= _head(values, module, facts, main, scores_pairs=is_cross_encoder)
        notes.append(f"{CONFIG}: {', '.join(more['labels'] or ['no names of the outputs'])}")
    return replace(facts, **more, notes=(*facts.notes, *notes))


def _library_module(values: Mapping[str, Any]) -> tuple[torch.nn.Module | None, str]:
    """Return the library's encoder of a config.json; None, and why, if it knows none."""
    if not values:
        return None, ""
    try:
        config = config_of(values)
        cls = base_of(config)
        import torch

        with quiet(), torch.device("meta"):
            return cls(config), ""
    except JobError as error:
        return None, str(error)
    except Exception as error:  # noqa: BLE001  # the library checks values in many ways
        return None, str(refused(error, f"makes no model of {CONFIG}"))


def _fitted(text: TextFacts, file: OnnxFile) -> TextFacts:
    """Return how texts become the tensors of the file: types only if its tokenizer gives them."""
    names = [end.name for end in file.inputs if end.name != TYPES or TYPES in text.tensor_names]
    most = min(text.max_tokens, file.max_tokens or text.max_tokens)
    return replace(text, max_tokens=most, tensor_names=tuple(names))


def _pooled(opened: Opened | None, main: TensorFacts) -> tuple[dict[str, Any], str]:
    """Return how the vectors of tokens become one, and what `pipeline plan` says of it."""
    if main.rank != 3:
        where = f"{MODULES} is not read: " if opened else ""
        return {}, f"{where}{main.name} is one vector per text already"
    width = fixed(main.shape, 2)
    if opened is None:
        return {"pooling": Pooling(("mean",), MODES), "embedding_dim": width}, _MEAN
    pooling, dim = opened.pooling(), opened.embedding_dim
    return {"pooling": pooling, "embedding_dim": dim}, pooling_note(pooling, dim)


def _head(
    values: Mapping[str, Any],
    module: torch.nn.Module | None,
    facts: DirectoryFacts,
    main: TensorFacts,
    *,
    scores_pairs: bool,
) -> dict[str, Any]:
    """Return labels, tasks and activation of the outputs of a classifier."""
    labels, width = facts.labels, main.shape[-1] if main.shape else None
    if labels is None and (module is not None or values.get("id2label")):
        labels = labels_of(module.config if module is not None else None, values)
    if labels is None or (isinstance(width, int) and width != len(labels)):
        return {"labels": None}
    head = "token" if facts.tasks[0] == "tokens" else "sequence"
    activation, is_named = score_activation(values, len(labels))
    known = tasks_of(head, labels, values, scores_pairs=scores_pairs or is_named)
    tasks = tuple(task for task in (*known, "raw") if task in facts.tasks)
    return {"labels": labels, "tasks": tasks, "activation": activation}
