"""`pipeline init`: write the job file that `predict` would run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import Overrides
from pipeline.operations.draft import draft_job, require_path
from pipeline.report.showing.printed import printed

log = logging.getLogger(__name__)

JOB_FILE = "job.yaml"


@printed
def init(
    input: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    to: str | os.PathLike[str],
    job: str | os.PathLike[str] = "job.yaml",
    features: Sequence[str] = (),
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a job file for an input and a model, with a reason behind each line; nothing runs.

    Args:
        input: A folder, a file or a glob.
        model: As of `predict`.
        to: Where the output will go.
        job: The file to write.
        features: The numeric columns that the model sees, in its order; a model that names its
            columns needs none.
        overrides: Fields of the job that are set over those that are found.
        allow_import: Prefixes of the modules that the job may name.

    Raises:
        JobError: Something is ambiguous: one line with the choices. Or the file is there.
    """
    require_path(input)
    draft = draft_job(input, model, to, overrides, allow_import, features, command="init")
    path = os.fspath(job)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(draft.text)
    except FileExistsError:
        raise JobError(
            f"{path}: is there already; choose another name (--job; in Python job=)"
        ) from None
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror}") from None
    return {"job": path, "found": [*draft.notes], "next": f"pipeline run {path}"}
