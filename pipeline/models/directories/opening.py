"""Open a model directory: its facts on the driver, its module in an actor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.cache.node_cache import versions_of
from pipeline.core.errors import JobError
from pipeline.models.directories.build import build_module
from pipeline.models.directories.described import DirectoryFacts, InputKind, TextFacts
from pipeline.models.directories.facts import read_facts
from pipeline.models.directories.snapshot import ModelDirectory, local, open_directory
from pipeline.models.directories.text.sentence_transformers import MODES
from pipeline.models.directories.text.text_facts import prompt_tokens
from pipeline.models.tasks.base import TaskSpec

if TYPE_CHECKING:
    import torch

_LIBRARIES = {
    "transformers": ("transformers",),
    "sentence_transformers": ("transformers",),
    "timm": ("timm",),
    "onnx": ("onnxruntime",),
}
"""Kind of a directory -> the distributions whose code is its architecture."""


def open_facts(
    uri: str, storage_options: Mapping[str, Any], input_name: str, pooling: str | None = None
) -> tuple[ModelDirectory, DirectoryFacts]:
    """Copy a model directory into the node cache and read what it says.

    Args:
        uri: The directory.
        storage_options: fsspec options.
        input_name: What the job's rows are: `text`, `image` or `features`.
        pooling: The job's pooling; None: the directory's.

    Raises:
        JobError: It is refused; says why, and what would be right.
        InfraError: It cannot be copied.
    """
    directory, path = open_directory(uri, storage_options)
    facts = read_facts(path, cast(InputKind, input_name))
    if pooling is not None:
        _check_pooling(facts, pooling)
    return directory, facts


def _check_pooling(facts: DirectoryFacts, pooling: str) -> None:
    own = facts.settings.get("pooling")
    if own is None:
        raise JobError(f"model.pooling: has no effect on {facts.architecture}; leave it out")
    if not isinstance(own, str) and len(own) > 1:
        raise JobError(
            f"model.pooling: the directory joins {', '.join(own)} to one vector; leave it out"
        )
    known = facts.settings.get("poolings", MODES)
    if pooling not in known:
        raise JobError(f"model.pooling = {pooling!r}: expected one of {', '.join(known)}")


def library_digest(facts: DirectoryFacts) -> str:
    """Digest the versions of the libraries that hold the architecture."""
    text = json.dumps([facts.kind, versions_of(_LIBRARIES[facts.kind])])
    return hashlib.sha256(text.encode()).hexdigest()


def directory_module(
    directory: ModelDirectory,
    input_name: str,
    pooling: str | None,
    task: TaskSpec,
    prefix: str | None = None,
) -> torch.nn.Module:
    """Build the module of a directory from this node's copy; see `build_module`.

    Args:
        directory: The directory.
        input_name: What the job's rows are.
        pooling: The job's pooling; None: the directory's.
        task: What the outputs are for.
        prefix: What is put before each text; None: the directory's.

    Raises:
        JobError: The directory changed, does not serve the task, or its weights do not fit.
    """
    path = local(directory)
    facts = read_facts(path, cast(InputKind, input_name))
    if pooling is not None:
        facts = replace(facts, settings={**facts.settings, "pooling": pooling})
    if facts.text is not None and prefix is not None:
        facts = _with_prefix(path, facts, facts.text, prefix)
    return build_module(path, facts, task)


def _with_prefix(path: Path, facts: DirectoryFacts, text: TextFacts, prefix: str) -> DirectoryFacts:
    """Replace the directory's prefix; poolings may leave out its tokens, so they are counted."""
    settings = dict(facts.settings)
    if not settings.get("include_prompt", True):
        settings["prompt_tokens"] = prompt_tokens(path / text.tokenizer, prefix) if prefix else 0
    return replace(facts, text=replace(text, prefix=prefix), settings=settings)
