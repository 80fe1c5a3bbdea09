"""Run a job on a Ray cluster through its job API, as if it ran here.

The cluster gets the job file and this very package, so that both sides run the same code; what
the package depends on must be installed there. Nothing of this machine's environment goes along:
whoever may list the cluster's jobs sees their command, metadata and environment variables, so
credentials and `${env:NAME}` are those of the cluster's nodes. Paths in the job file are read
there as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import ipaddress
import logging
import os
import shlex
import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InfraError, JobError, PipelineError, Stopped

log = logging.getLogger(__name__)

_CONNECT_S, _ANSWER_S = 10.0, 60.0
# A silent log is asked for again after this long: a dead connection looks like a quiet job.
_SILENCE_S = 60.0
_PAUSE_S = 2.0
_GIVE_UP_S = 120.0
# Ray's 3 s are too short to write a report and to give the lease back.
_CLUSTER_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private")


def submit_job(
    job_path: str,
    address: str,
    date: dt.date,
    overrides: list[str],
    allow_import: list[str],
    write: Callable[[str], object],
) -> int:
    """Run a job on a cluster, pass its log on, and return its exit code.

    Args:
        job_path: The job file, on this machine.
        address: The cluster's job API, `http://HOST:8265` or `https://...`.
        date: The logical date, the value of `${date}`.
        overrides: `section.field=value` strings.
        allow_import: Module prefixes that `model.factory` may name.
        write: Gets the log piece by piece, while the job runs.

    Raises:
        JobError: The address or an override cannot be used, or the extra `submit` is missing.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    _refuse_secrets(overrides)
    client = _connect(address)
    job_id = f"pipeline-{uuid.uuid4().hex[:12]}"
    try:
        _send(client, job_id, job_path, date, entrypoint(date, overrides, allow_import))
        log.info("job %s runs on %s; its log follows", job_id, _shown(address))
        events = _Follower(client, job_id).start()
        return _exit_code(_pass_on(events, write), job_id)
    except Stopped:
        # The id is our own, so that even a job whose submission was cut short can be stopped.
        log.info("stopping job %s on the cluster", job_id)
        _stop(client, job_id)
        events = _Follower(client, job_id, num_chars=None).start()
        return _exit_code(_pass_on(events, write), job_id)


def entrypoint(date: dt.date, overrides: Sequence[str], allow_import: Sequence[str]) -> str:
    """Return the command of the job: one line that a shell takes apart into the same arguments."""
    command = ["python", "-m", "pipeline", "run", "job.yaml", "--json", "--date", date.isoformat()]
    for override in overrides:
        command += ["--set", override]
    for prefix in allow_import:
        command += ["--allow-import", prefix]
    return shlex.join(command)
