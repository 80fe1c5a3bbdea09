"""`pipeline init`: write the job file that `predict` would run."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import Overrides
from pipeline.operations.draft import draft_job
from pipeline.operations.rows import stored_rows
from pipeline.report.showing.printed import printed

log = logging.getLogger(__name__)

JOB_FILE = "job.yaml"

if TYPE_CHECKING:
    from pipeline.operations.rows import Rows


@printed
def init(
    input: Rows,
    *,
    model: str | os.PathLike[str],
    to: str | os.PathLike[str],
    job: str | os.PathLike[str] = "job.yaml",
    features: Sequence[str] = (),
    overrides: Overrides = (),
    allow_import: Sequence[str] = (),
) -> dict[str, Any]:
    """Write a job file for an input and a model, with a reason behind each line; run nothing.

    Args:
        input: As for `predict`.
        model: As for `predict`.
        to: Root of the output.
        job: The file to write.
        features: The model's numeric columns, in order, unless the model names them.
        overrides: Fields that override those that were detected.
        allow_import: Prefixes of the modules that the job may name.

    Raises:
        JobError: Something is ambiguous (one line has the choices), or the file exists.
    """
    uri = stored_rows(input, to)
    draft = draft_job(uri, model, to, overrides, allow_import, features, command="init")
    path = os.fspath(job)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write(draft.text)
    except FileExistsError:
        raise JobError(f"{path} already exists; pass another --job (in Python job=)") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror}") from None
    return {"job": path, "found": [*draft.notes], "next": f"pipeline run {path}"}
