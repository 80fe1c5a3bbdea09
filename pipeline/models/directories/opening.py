"""Open a model directory: its facts on the driver, its module in an actor."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.node_cache import versions_of
from pipeline.models.directories.build import build_module
from pipeline.models.directories.described import DirectoryFacts, InputKind
from pipeline.models.directories.facts import read_facts
from pipeline.models.directories.snapshot import ModelDirectory, local, open_directory
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
    uri: str, storage_options: Mapping[str, Any], input_name: str
) -> tuple[ModelDirectory, DirectoryFacts]:
    """Copy a model directory into the node cache and read what it says.

    Args:
        uri: The directory.
        storage_options: fsspec options.
        input_name: What the job's rows are: `text`, `image` or `features`.

    Raises:
        JobError: It is refused; says why, and what would be right.
        InfraError: It cannot be copied.
    """
    directory, path = open_directory(uri, storage_options)
    return directory, read_facts(path, cast(InputKind, input_name))


def library_digest(facts: DirectoryFacts) -> str:
    """Digest the versions of the libraries that hold the architecture."""
    text = json.dumps([facts.kind, versions_of(_LIBRARIES[facts.kind])])
    return hashlib.sha256(text.encode()).hexdigest()


def directory_module(
    directory: ModelDirectory, input_name: str, pooling: str | None, task: TaskSpec
) -> torch.nn.Module:
    """Build the module of a directory from this node's copy; see `build_module`.

    Args:
        directory: The directory.
        input_name: What the job's rows are.
        pooling: The job's pooling; None: the directory's.
        task: What the outputs are for.

    Raises:
        JobError: The directory changed, does not serve the task, or its weights do not fit.
    """
    path = local(directory)
    facts = read_facts(path, cast(InputKind, input_name))
    if pooling is not None:
        facts = replace(facts, settings={**facts.settings, "pooling": pooling})
    return build_module(path, facts, task)
