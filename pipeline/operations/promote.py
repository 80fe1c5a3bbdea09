"""`pipeline promote`: write the job whose model is the challenger of another one."""

from __future__ import annotations

import os
from typing import Any

import yaml

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import parse_job
from pipeline.job.reading.yaml_reader import read_yaml
from pipeline.operations.jobs import read_date
from pipeline.report.showing.printed import printed


@printed
def promote(job: str | os.PathLike[str], out: str | os.PathLike[str]) -> dict[str, Any]:
    """Write a job like another one, whose section `model` is `model.challenger` of that one.

    All other sections stay as they are written, `${date}` and the like included; comments do not.

    Args:
        job: The path of a job file.
        out: The job file to write.

    Raises:
        JobError: The job has no challenger, or would be none with it; or the file is there.
    """
    source, path = os.fspath(job), os.fspath(out)
    document = dict(read_yaml(source).value)
    model = document.get("model")
    challenger = model.get("challenger") if isinstance(model, dict) else None
    if not challenger:
        raise JobError(f"{source}: has no model.challenger to promote")
    document["model"] = challenger
    parse_job(document, date=read_date(None), origin=path)
    try:
        with open(path, "x", encoding="utf-8") as file:
            yaml.safe_dump(document, file, sort_keys=False, allow_unicode=True)
    except FileExistsError:
        raise JobError(f"{path}: is there already; choose another name") from None
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror}") from None
    named = next(challenger[name] for name in ("path", "name", "factory") if challenger.get(name))
    return {"job": path, "model": named, "next": f"pipeline run {path}"}
