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
    for field, target, name in _named(job):
        for folder, where in ((Path(job_path).parent, "beside the job file"), (Path(), "here")):
            file = _file_of(name, folder)
            if file is not None and not _is_found(name):
                raise JobError(
                    f"{field} = {target!r}: {file} lies {where}, which is not searched: "
                    f"PYTHONPATH={quote(str(folder))} pipeline ... --allow-import {name}"
                )


def warn_of_local_code(job: Job, job_path: str) -> None:
    """Warn of code beside the job file, which is not sent to a cluster."""
    for field, target, name in _named(job):
        file = _file_of(name, Path(job_path).parent)
        if file is not None:
            log.warning(
                "%s = %r: %s is not sent along with the job: give --code, or install it on the "
                "cluster's nodes",
                *(field, target, file),
            )


def _named(job: Job) -> Iterator[tuple[str, str, str]]:
    """Yield the field, what it says, and the outermost package of that."""
    for field in ("factory", "postprocess"):
        target = getattr(job.model, field)
        if target is not None:
            yield f"model.{field}", target, target.partition(":")[0].split(".")[0]


def _file_of(name: str, folder: Path) -> str | None:
    """Return the name of the file or folder that a module of this name would be."""
    if not name.isidentifier():
        return None
    if (folder / f"{name}.py").is_file():
        return f"{name}.py"
    return f"{name}/" if (folder / name / "__init__.py").is_file() else None


def _is_found(name: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # it is imported already, from nowhere
        return True
