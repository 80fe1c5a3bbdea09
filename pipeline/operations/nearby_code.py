"""Code beside a job file: never imported from there by itself, but named if it is missed.

A folder that is searched could replace any module that some library only looks for; so who starts
the run names the folder, in PYTHONPATH, and the module, with --allow-import.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from pipeline.core.errors import JobError
from pipeline.job.job import Job

log = logging.getLogger(__name__)


def require_findable(job: Job, job_path: str) -> None:
    """Check that what a job names can be imported, if it lies where a user would expect that.

    Raises:
        JobError: It lies beside the job file or in the current folder, and neither is searched.
    """
    for folder, where in ((Path(job_path).parent, "beside the job file"), (Path(), "here")):
        for field, name, file in _files_in(folder, job):
            if not _is_found(name):
                raise JobError(
                    f"{field}: {file} lies {where}, which is not searched: "
                    f"PYTHONPATH={quote(str(folder))} pipeline ... --allow-import {name}"
                )


def warn_of_local_code(job: Job, job_path: str) -> None:
    """Warn of code beside the job file, which is not sent to a cluster."""
    for field, _, file in _files_in(Path(job_path).parent, job):
        log.warning(
            "%s: %s is not sent along with the job: give --code, or install it on the cluster's "
            "nodes",
            field,
            file,
        )


def _files_in(folder: Path, job: Job) -> Iterator[tuple[str, str, str]]:
    """Yield the fields that name code of a folder, with the outermost module and its file."""
    for field in ("factory", "postprocess"):
        target = getattr(job.model, field) or ""
        name = target.partition(":")[0].split(".")[0]
        for file in (f"{name}.py", f"{name}/__init__.py"):
            if name.isidentifier() and (folder / file).is_file():
                yield f"model.{field} = {target!r}", name, file


def _is_found(name: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # it is imported already, from nowhere
        return True
