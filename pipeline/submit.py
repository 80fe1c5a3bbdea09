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
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import InfraError, JobError, PipelineError, Stopped
from pipeline.ray_token import send_token
from pipeline.schema import clean_message

log = logging.getLogger(__name__)

_CONNECT_S, _ANSWER_S = 10.0, 60.0
# A silent log is asked for again after this long: a dead connection looks like a quiet job.
_SILENCE_S = 60.0
_PAUSE_S = 2.0
_GIVE_UP_S = 120.0
# Ray's 3 s are too short to write a report and to give the lease back.
_CLUSTER_ENVIRONMENT = {"RAY_JOB_STOP_WAIT_TIME_S": "30"}
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private",
)


def submit_job(
    job_path: str,
    address: str,
    date: dt.date,
    overrides: list[str],
    allow_import: list[str],
    accept: list[str],
    write: Callable[[str], object],
) -> int:
    """Run a job on a cluster, pass its log on, and return its exit code.

    Args:
        job_path: The job file, on this machine.
        address: The cluster's job API, `http://HOST:8265` or `https://...`.
        date: The logical date, the value of `${date}`.
        overrides: `section.field=value` strings.
        allow_import: Module prefixes that `model.factory` may name.
        accept: `GATE=REASON` strings.
        write: Gets the log piece by piece, while the job runs.

    Raises:
        JobError: The address or an override cannot be used, or the extra `submit` is missing.
        InfraError: The cluster does not answer, or could not run the job to its end.
    """
    _refuse_secrets(overrides)
    client = _connect(address)
    job_id = f"pipeline-{uuid.uuid4().hex[:12]}"
    follower = _Follower(client, job_id)
    try:
        command = entrypoint(date, overrides, allow_import, accept)
        _send(client, job_id, job_path, date, command)
        log.info("job %s runs on %s; its log follows", job_id, _shown(address))
        return _exit_code(follower.pass_on(write), job_id)
    except KeyboardInterrupt:
        # The id is ours, so that even a job whose submission was cut short can be stopped.
        log.info("stopping job %s on the cluster", job_id)
        if not _stop(client, job_id):
            raise
        return _exit_code(follower.pass_on(write), job_id)


def entrypoint(
    date: dt.date, overrides: Sequence[str], allow_import: Sequence[str], accept: Sequence[str]
) -> str:
    """Return the command of the job: one line that a shell takes apart into the same arguments."""
    command = ["python", "-m", "pipeline", "run", "job.yaml", "--json", "--date", date.isoformat()]
    for override in overrides:
        command += ["--set", override]
    for prefix in allow_import:
        command += ["--allow-import", prefix]
    for text in accept:
        command += ["--accept", text]
    return shlex.join(command)


def _refuse_secrets(overrides: Sequence[str]) -> None:
    for override in overrides:
        name = override.partition("=")[0]
        if "storage_options" in name:
            raise JobError(
                f"--set {name}: the cluster would show the value to everybody who lists its jobs; "
                "write it in the job file, as ${env:NAME}"
            )


def _connect(address: str) -> Any:
    """Return a client of the job API that has seen the cluster answer.

    Raises:
        JobError: The address or the token is wrong, or the extra `submit` is missing.
        InfraError: Nothing answers, or not a job API.
    """
    shown = _shown(address)
    _warn_if_open(address, has_token=send_token())
    try:
        import aiohttp  # noqa: F401  # Ray's client imports it only where it is installed
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient
    except ImportError:
        raise JobError(
            "submit needs the extra: pip install 'batch-inference-pipeline[submit]'"
        ) from None
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)

    class Client(JobSubmissionClient):  # type: ignore[misc]  # Ray is not typed
        """Ray's client, which sets no time limits, with limits on every request."""

        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            limits = (_CONNECT_S, _ANSWER_S)
            return super()._do_request(method, endpoint, timeout=limits, **options)

    try:
        with _sole_address(address):
            return Client(address)
    except AuthenticationError:
        raise JobError(
            f"{shown}: wants another token: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to its file"
        ) from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        raise InfraError(f"{shown}: no Ray job API answers: {_one_line(_root(error))}") from None


def _shown(address: str) -> str:
    """Return the address without user, password and path.

    Raises:
        JobError: It is no HTTP address.
    """
    try:
        parts = urlsplit(address)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        parts, port = urlsplit(""), ""
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise JobError(
            f"--address {address}: the job API has an address like http://HOST:8265 "
            "(HOST:6379 is for `pipeline run --address`)"
        )
    return f"{parts.scheme}://{parts.hostname}{port}"


def _warn_if_open(address: str, *, has_token: bool) -> None:
    parts = urlsplit(address)
    if parts.scheme == "http" and not has_token and not _is_loopback(parts.hostname or ""):
        log.warning(
            "%s: neither encrypted nor with a token (RAY_AUTH_TOKEN): who reaches this port can "
            "run anything on the cluster",
            _shown(address),
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _sole_address(address: str) -> Iterator[None]:
    """Let the body's client use this address: Ray prefers two environment variables to it."""
    name = "RAY_API_SERVER_ADDRESS"
    saved = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        del os.environ[name]
        if saved is not None:
            os.environ[name] = saved


def _send(client: Any, job_id: str, job_path: str, date: dt.date, command: str) -> None:
    from ray.exceptions import AuthenticationError

    with tempfile.TemporaryDirectory(prefix="pipeline-submit-") as folder:
        shutil.copyfile(job_path, Path(folder) / "job.yaml")
        try:
            client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env={
                    "working_dir": folder,
                    "py_modules": [str(Path(__file__).parent)],
                    "env_vars": dict(_CLUSTER_ENVIRONMENT),
                },
                metadata={"job": Path(job_path).stem, "date": date.isoformat()},
            )
        except (OSError, RuntimeError, AuthenticationError) as error:
            raise InfraError(f"job {job_id}: cannot be submitted: {_one_line(error)}") from None


def _stop(client: Any, job_id: str) -> bool:
    """Ask the cluster to stop a job; return False if it has no such job.

    Raises:
        InfraError: The cluster does not answer: the job may go on.
    """
    until = time.monotonic() + _GIVE_UP_S
    try:
        # A job that is only just starting cannot be stopped yet: Ray says no.
        while not client.stop_job(job_id) and not client.get_job_status(job_id).is_terminal():
            if time.monotonic() > until:
                raise InfraError(f"job {job_id}: does not stop; it may go on")
            time.sleep(_PAUSE_S)
    except RuntimeError:
        return False
    except OSError as error:
        raise InfraError(
            f"job {job_id}: cannot be stopped, it may go on: {_one_line(error)}"
        ) from None
    return True


@dataclass
class _Follower:
    """Follows the log of a job until the job has ended, through lost connections.

    In a thread of its own: a signal handler that raises inside an event loop may be swallowed by
    it, whereas the main thread, waiting for the queue, sees the error at once.
    """

    client: Any
    job_id: str
    _events: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    _thread: threading.Thread | None = None
    _num_chars: int = 0

    def pass_on(self, write: Callable[[str], object]) -> Any:
        """Write the log until the job has ended; return Ray's details of the job.

        Raises:
            InfraError: The cluster has not answered for a while.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
            self._thread.start()
        while True:
            event = self._events.get()
            if isinstance(event, str):
                write(event)
            elif isinstance(event, Exception):
                raise event
            else:
                return event

    def _follow(self) -> None:
        try:
            self._events.put(self._until_the_end())
        except Exception as error:  # noqa: BLE001  # the main thread raises it
            self._events.put(error)

    def _until_the_end(self) -> Any:
        from aiohttp import ClientError

        answered = time.monotonic()
        while True:
            trouble: Exception | None = None
            try:
                asyncio.run(self._tail())
            except (ClientError, OSError, RuntimeError) as error:
                trouble = error
            try:
                details = self.client.get_job_info(self.job_id)
                answered = time.monotonic()
                if details.status.is_terminal():
                    return details
            except (OSError, RuntimeError) as error:
                trouble = error
            if time.monotonic() - answered > _GIVE_UP_S:
                raise InfraError(
                    f"job {self.job_id}: the cluster does not answer, the job may go on: "
                    f"{_one_line(trouble)}"
                )
            time.sleep(_PAUSE_S)

    async def _tail(self) -> None:
        """Put new pieces of the log; a connection begins with the whole log again."""
        stream = self.client.tail_job_logs(self.job_id)
        to_skip = self._num_chars
        while True:
            piece = await asyncio.wait_for(anext(stream, None), _SILENCE_S)
            if piece is None:
                return
            new = piece[to_skip:]
            to_skip -= len(piece) - len(new)
            if new:
                self._num_chars += len(new)
                self._events.put(new)


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
    if code in range(PipelineError.exit_code, InfraError.exit_code + 1):
        return int(code)
    how = "without an exit code" if code is None else f"with exit code {code}"
    raise InfraError(f"job {job_id}: ended {how}: {_one_line(details.message)}")


def _root(error: BaseException) -> BaseException:
    """Return what the HTTP client met first: "connection refused" without three wrappers."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def _one_line(reason: object) -> str:
    kind = f"{type(reason).__name__}: " if isinstance(reason, ValueError | KeyError) else ""
    return clean_message(f"{kind}{reason}")
