"""The predictor key: a digest of everything that decides the prediction of a row.

Two runs with one predictor key give a row the same prediction: bit for bit, or, if they differ in
runtime or batch size, within the limits of the agreement gate. Versions of installed libraries are
not part of it: they are the environment, and if that changes more rows are checked.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipeline.core.printable import clean_message
from pipeline.core.schema import OUTPUT_SCHEMA_VERSION
from pipeline.models.spec import ModelSpec

_OF_RUNTIME = {"runtime", "choice"}
_OF_LIBRARIES = {"directory", "torchvision"}
"""Origins of models whose code belongs to an installed library."""
_SECTIONS = {"task": "model", "transform": "transform"}
"""Part of a model with settings of its own -> the section of the job with these settings."""
_SETTINGS = {
    "name": "model.task",
    "num_labels": "the labels",
    "labels_sha256": "the labels",
}
"""Setting of a task without a field of its name -> the words for it."""
_WORDS = {
    "weights_sha256": "the weights",
    "weights_key": "the weights",
    "name": "the model",
    "kind": "the model",
    "args": "the arguments of the model",
    "code_sha256": "the model's code",
    "layer": "the layer of the model",
    "pooling": "the pooling",
    "precision": "the precision",
    "semantics": "how this version of the package computes",
    "extensions": "the code of an extension",
    "fields": "the types of the input's columns",
}


_NOT_IN_MANIFEST = (
    "the precision, the types of the input's columns, or source.max_image_bytes or max_image_px"
)


def predictor_key(
    model: ModelSpec,
    fields: pa.Schema,
    semantics: Mapping[str, int],
    extensions: Mapping[str, str],
    limits: Mapping[str, int],
) -> str:
    """Return a digest of everything that decides the prediction of a row; '' if unknown.

    Args:
        model: As in the job, before a runtime is chosen.
        fields: The columns of a row's input.
        semantics: Area -> version of the code that a row goes through.
        extensions: Extension of an installed distribution -> digest of its code.
        limits: Field of the job -> its limit for decoding.
    """
    if not model.has_weights:
        return ""
    facts = {k: v for k, v in model.to_dict().items() if k not in _OF_RUNTIME}
    if model.origin in _OF_LIBRARIES:
        del facts["code_sha256"]
    facts |= {
        "semantics": dict(semantics),
        "extensions": dict(extensions),
        "limits": dict(limits),
        "fields": [[field.name, str(field.type)] for field in fields],
    }
    return digest_of(facts)


def why_other(
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    *parts: tuple[Mapping[str, Any], Mapping[str, Any]],
) -> str:
    """Name the parts of a predictor that differ: "the weights, the transform".

    Args:
        then: The model of a published version, from its manifest.
        now: The model of a plan, in the same form.
        parts: `fingerprint_parts` of both.
    """
    ignored = {*_OF_RUNTIME, "precision"}
    if then.get("kind") in _OF_LIBRARIES:
        ignored.add("code_sha256")
    names = [n for n in {**_WORDS, **then, **now} if n not in ignored and then.get(n) != now.get(n)]
    for before, after in parts:
        names += [n for n in ("semantics", "extensions") if before.get(n, {}) != after.get(n, {})]
    words = dict.fromkeys(w for n in names for w in _in_words(n, then.get(n), now.get(n)))
    return ", ".join(words) or _NOT_IN_MANIFEST


def _in_words(name: str, before: Any, after: Any) -> Iterator[str]:
    """Yield the differences in a part of a predictor: `model.top_k 3 -> 5`."""
    section = _SECTIONS.get(name)
    if section is None or not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        yield _WORDS.get(name, f"the {name}")
        return
    for key in {**before, **after}:
        old, new = (settings.get(key, "default") for settings in (before, after))
        if old == new:
            continue
        is_shown = all(isinstance(value, str | int | float | None) for value in (old, new))
        change = "" if not is_shown or key.endswith("_sha256") else f" {old} -> {new}"
        yield _SETTINGS.get(key) or clean_message(f"{section}.{key}{change}")


def row_settings(
    source: Mapping[str, Any], root: str, pass_through: pa.Schema, task_fields: pa.Schema
) -> str:
    """Return a digest of everything that decides the columns of a row beside its prediction.

    Rows of an unchanged shard are carried over whole only if it is the same.

    Args:
        source: The job's source section, without the fields that only select files.
        root: URL that the paths of the shards are relative to.
        pass_through: The columns that are passed through.
        task_fields: The columns that the task adds.
    """
    columns = [[f.name, str(f.type), f.nullable] for f in (*pass_through, *task_fields)]
    return digest_of([OUTPUT_SCHEMA_VERSION, dict(source), root, columns])


def digest_of(facts: Any) -> str:
    """Return the SHA-256 of facts, as JSON."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
