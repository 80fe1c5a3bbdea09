"""Measure how long the vectors of a model are, where neither job nor model says it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from pipeline.core.cache.node_cache import cached_folder, key_of
from pipeline.core.errors import InfraError, JobError
from pipeline.core.schema import EMBEDDING
from pipeline.job.job import Job
from pipeline.models.spec import ModelSpec
from pipeline.models.tasks.embed import lacks_length
from pipeline.planning.plan import make_plan, schema_to_text
from pipeline.sources.inputs import Inputs

_FILE = "length.json"


def with_lengths(job: Job, inputs: Inputs, model: ModelSpec) -> ModelSpec:
    """Return the model with the lengths of its vectors, as it gives them for a row of the input.

    What was measured is kept per node, so that the model is built for it once.

    Raises:
        JobError: No row can be predicted.
    """
    if not lacks_length(model.task):
        return model

    def write(folder: Path) -> None:
        (folder / _FILE).write_text(json.dumps(_measure(job, inputs, model)))

    facts = ["vector length", model.to_dict(), schema_to_text(inputs.fields)]
    try:
        found = json.loads((cached_folder(key_of(facts), write) / _FILE).read_text())
    except (OSError, InfraError):  # the node cache is not writable
        found = _measure(job, inputs, model)
    return replace(model, task=replace(model.task, embedding_dim=found))


def _measure(job: Job, inputs: Inputs, model: ModelSpec) -> int:
    from pipeline.runs.preparing.one_row import preview_row

    tried = preview_row(job, make_plan(job, inputs, model, batch_size=1), model)
    if tried.predicted is None:
        raise JobError(f"model.embedding_dim: is to be measured, and {tried.found}; give it")
    [row] = tried.predicted.to_pylist()
    return len(row[EMBEDDING])
