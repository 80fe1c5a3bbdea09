"""Run a job on a Ray cluster through its job API, as if it ran here.

The cluster gets the job file and this very package, so that both sides run the same code; what
the package depends on must be installed there. Nothing of this machine's environment goes along:
all who may list the cluster's jobs see their command, metadata and environment variables, so
credentials and `${env:NAME}` are those of the cluster's nodes. Paths in the job file are read
there as well.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import shlex
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.environment import SUBMITTED
from pipeline.core.errors import InfraError, InputMissing, JobError, PipelineError, Stopped
from pipeline.execution.submit.client import connect_job_api, one_line, shown_address
from pipeline.execution.submit.log_follower import GIVE_UP_S, PAUSE_S, Follower
from pipeline.execution.versions import refused_errors
from pipeline.job.reading.yaml_reader import parse_value

log = logging.getLogger(__name__)

# Ray's 3 s are too short to write a report and to give the lease back.
_CLUSTER_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30", SUBMITTED: "1"}


@dataclass(frozen=True)
class Submission:
    """What is to run on a cluster."""

    job_path: str
    """The job file, on this machine."""
    date: dt.date
    """The logical date, the value of `${date}`."""
    overrides: Sequence[str] = ()
    """`section.field=value` strings."""
    allow_import: Sequence[str] = ()
    """Module prefixes that `model.factory` may name."""
    accept: Sequence[str] = ()
    """`GATE=REASON` strings."""
    as_json: bool = False
    quiet: bool = False

    @property
    def entrypoint(self) -> str:
        """Return the command: one line that a shell takes apart into the same arguments."""
        command = ["python", "-m", "pipeline", "run", "job.yaml", "--date", self.date.isoformat()]
        command += ["--json"] * self.as_json + ["--quiet"] * self.quiet
        for override in self.overrides:
            command += ["--set", override]
        for prefix in self.allow_import:
            command += ["--allow-import", prefix]
        for text in self.accept:
            command += ["--accept", text]
        return shlex.join(command)


def submit_job(asked: Submission, address: str, write: Callable[[str], object]) -> int:
    """Run a job on a cluster, pass its log on, and return its exit code.

    Args:
        asked: The job, and how it is to run.
        address: The cluster's job API, `http://HOST:8265` or `https://...`.
        write: Gets the log piece by piece, while the job runs.

    Raises:
        JobError: The address or an override cannot be used, or the extra `submit` is missing.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    _refuse_secrets(asked.overrides)
    client = connect_job_api(address)
    job_id = f"pipeline-{uuid.uuid4().hex[:12]}"
    follower = Follower(client, job_id)
    try:
        _send(client, job_id, asked)
        log.info("job %s runs on %s; its log follows", job_id, shown_address(address))
        return _exit_code(follower.pass_on(write), job_id)
    except KeyboardInterrupt:
        # The id is ours, so that even a job whose submission was cut short can be stopped.
        log.info("stopping job %s on the cluster", job_id)
        if not _stop(client, job_id):
            raise
        return _exit_code(follower.pass_on(write), job_id)


def error_without_document(code: int) -> PipelineError:
    """Return the error of a job that has ended with a code, but has written no document."""
    kinds = {kind.exit_code: kind for kind in PipelineError.__subclasses__()}
    return kinds.get(code, InfraError if code == 0 else PipelineError)(
        f"the job ended with exit code {code}; its log has no JSON document"
    )


def _refuse_secrets(overrides: Sequence[str]) -> None:
    for override in overrides:
        name, _, text = override.partition("=")
        if "storage_options" in name or "storage_options" in json.dumps(parse_value(text)):
            raise JobError(
                f"--set {name}: the cluster would show storage_options to everybody who lists its "
                "jobs; write them in the job file, as ${env:NAME}"
            )


def _send(client: Any, job_id: str, asked: Submission) -> None:
    with tempfile.TemporaryDirectory(prefix="pipeline-submit-") as folder:
        shutil.copyfile(asked.job_path, Path(folder) / "job.yaml")
        try:
            client.submit_job(
                entrypoint=asked.entrypoint,
                submission_id=job_id,
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(Path(__file__).parents[2])],
                    "env_vars": dict(_CLUSTER_ENVIRONMENT),
                },
                metadata={"job": Path(asked.job_path).stem, "date": asked.date.isoformat()},
            )
        except Exception as error:
            if not isinstance(error, (OSError, RuntimeError, *refused_errors())):
                raise
            raise InfraError(f"job {job_id}: cannot be submitted: {one_line(error)}") from None


def _stop(client: Any, job_id: str) -> bool:
    """Ask the cluster to stop a job; return False if it has no such job.

    Raises:
        InfraError: The cluster does not answer: the job may go on.
    """
    until = time.monotonic() + GIVE_UP_S
    try:
        # A job that is only just starting cannot be stopped yet: Ray says no.
        while not client.stop_job(job_id) and not client.get_job_status(job_id).is_terminal():
            if time.monotonic() > until:
                raise InfraError(f"job {job_id}: does not stop; it may go on")
            time.sleep(PAUSE_S)
    except RuntimeError:
        return False
    except OSError as error:
        raise InfraError(
            f"job {job_id}: cannot be stopped, it may go on: {one_line(error)}"
        ) from None
    return True


def _exit_code(details: Any, job_id: str) -> int:
    """Return the exit code of an ended job.

    Raises:
        InfraError: It ended without one, or by none of the pipeline's own.
    """
    if details.status == "SUCCEEDED":
        return 0
    if details.status == "STOPPED":
        return Stopped.exit_code
    code = details.driver_exit_code
    if code in range(PipelineError.exit_code, InputMissing.exit_code + 1):
        return int(code)
    how = "without an exit code" if code is None else f"with exit code {code}"
    raise InfraError(f"job {job_id}: ended {how}: {one_line(details.message)}")
