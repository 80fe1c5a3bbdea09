"""Connect to Ray: start an embedded one, or log in to a cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import socket
import threading
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.printable import clean_message
from pipeline.execution import health
from pipeline.execution.caller import SHARING, default_data_context, restore_process_state
from pipeline.execution.cluster.hardware import embedded_store_bytes, hardware_of
from pipeline.execution.cluster.in_flight import ExecutorSeen
from pipeline.execution.embedded.forkserver import ForkServer, fork_workers
from pipeline.execution.embedded.patches import (
    BROKEN,
    DATA,
    END,
    FORK,
    SIGTERM,
    START,
    TALK,
    applied,
    is_usable,
)
from pipeline.execution.embedded.ray_folder import RayFolder
from pipeline.execution.environment import (
    NO_AUTOLOAD,
    WORKER_ENVIRONMENT,
    about_home,
    refuse_autoload,
    refused_token,
    set_embedded,
    set_remote,
)
from pipeline.execution.private_names import is_plain, read
from pipeline.execution.submit.client import connect_job_api, one_line
from pipeline.execution.versions import (
    connected_ray,
    different_versions,
    refused_errors,
    require_supported,
    session_folder,
    set_callbacks,
    set_known,
)
from pipeline.planning.allocation import Hardware
from pipeline.process.interrupts import reason
from pipeline.process.liveness import note_progress
from pipeline.process.run_scope import current_scope
from pipeline.process.shared_notes import note
from pipeline.process.terminal import (
    native_errors_dropped,
    native_errors_to,
    restore_signal_handlers,
)

log = logging.getLogger(__name__)
_REACH_S = 10.0


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[Connection]:
    """Start an embedded Ray, or connect to the cluster at `address`, for the body.

    A Ray that is initialised in this process already is used instead, and left running.

    Raises:
        JobError: `address` is malformed, or not that of the Ray that is initialised here; or the
            environment lets Ray unpickle its input.
        InfraError: No cluster answers at `address`.
    """
    refuse_autoload()
    started = perf_counter()
    shared = SHARING.get()
    with restore_process_state(), contextlib.ExitStack() as stack:
        ray = _initialised(address)
        stays = shared is not None or ray is not None
        is_ours = address is None and (ray is None or bool(shared and shared.is_embedded))
        if is_ours:
            set_embedded()
        else:
            set_remote()
        if ray is None:
            ray = (shared.stack if shared else stack).enter_context(_connected(address))
            if shared:
                shared.is_embedded = is_ours
        with health.watched(ray, is_ours=is_ours), default_data_context(ray_stays=stays):
            note_progress("connected to Ray")
            _silence_ray()
            _configure_data()
            hardware = hardware_of(ray)
            with applied(*DATA, ray=ray, on_cluster=not is_ours):
                yield Connection(hardware, perf_counter() - started, not is_ours)


class Connection(NamedTuple):
    """The Ray of a run."""

    hardware: Hardware
    start_s: float
    """Seconds to connect, with the import of Ray."""
    on_cluster: bool
    """Ray was not started for these runs alone."""


def _initialised(address: str | None) -> Any:
    """Return the module of Ray if it is initialised in this process, otherwise None.

    Raises:
        JobError: It is not the one at `address`.
    """
    if (ray := connected_ray()) is None:
        return None
    theirs = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", theirs):
        raise JobError(
            f"--address {address}: this process is connected to the Ray at {theirs}; leave the "
            "address out to use that one, or call ray.shutdown() first"
        )
    return ray


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray for the body; yield its module.

    Args:
        address: The address of the cluster; None: start Ray.
    """
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_ray_folder()) if address is None else None
        if folder:
            stack.enter_context(native_errors_to(folder.native_log))
        server = stack.enter_context(
            fork_workers() if address is None else contextlib.nullcontext()
        )
        import ray

        note(has_ray=True)
        require_supported("this Python has", ray.__version__)
        stack.enter_context(applied(TALK, ray=ray, on_cluster=address is not None))
        if server is not None and not is_usable(FORK):
            server.end()
            server = None
        try:
            _connect(ray, address, server, folder)
        except BaseException:
            _end(ray)  # end the processes that it has started
            raise
        if folder is None:
            name = f"driver-native-{secrets.token_hex(8)}.err"
            stack.enter_context(native_errors_to(session_folder() / "logs" / name))
        stack.callback(_end, ray)
        yield ray


def _end(ray: Any) -> None:
    with applied(END, ray=ray):
        health.end(ray)


@contextlib.contextmanager
def _ray_folder() -> Iterator[RayFolder]:
    """Make the folder of an embedded Ray for the body; keep its logs after an error."""
    folder, keep_logs = RayFolder(), log.isEnabledFor(logging.DEBUG)
    try:
        note(ray_folders=list(map(str, folder.folders)))
        with current_scope().closing(partial(folder.end, keep_logs=True)):
            yield folder
    except BaseException as error:
        why = reason() if isinstance(error, KeyboardInterrupt) else error
        keep_logs |= isinstance(why, InfraError) or not isinstance(why, PipelineError)
        raise
    finally:
        folder.end(keep_logs=keep_logs)
        note(ray_folders=None)


def _connect(
    ray: Any,
    address: str | None,
    server: ForkServer | None,
    folder: RayFolder | None,
) -> None:
    """Connect to Ray, or start it.

    Raises:
        InfraError: This fails.
    """
    # Importing takes 1.5 s: do it while the processes of Ray start.
    importing = threading.Thread(target=_import_data, daemon=True)
    importing.start()
    _silence_ray()  # after the import, which sets its own filters
    try:
        # Ray's handler would be installed for seconds; it ends the process with another code.
        with restore_signal_handlers(), applied(SIGTERM, ray=ray, on_cluster=address is not None):
            _init(ray, address, server, folder)
    except PipelineError:
        raise
    except Exception as error:  # noqa: BLE001  # Ray raises bare exceptions, too
        cause = health.trouble() or different_versions(str(error))
        cause = cause or f"cannot connect: {clean_message(str(error), 200)}{about_home(error)}"
        raise InfraError(f"Ray at {address or 'this machine'}: {cause}") from None
    finally:
        importing.join()


def _import_data() -> None:
    with contextlib.suppress(ImportError):  # a later import reports it
        importlib.import_module("ray.data")


def _configure_data() -> None:
    from ray.data import DataContext

    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # the user gets our one line for an error
    context = DataContext.get_current()
    settings = {
        # Every slice leaves its task as its own block as soon as it is finished.
        "target_max_block_size": 1,
        "enable_progress_bars": False,
        # Ray's wrapper loses the cause on the way to the driver.
        "raise_original_map_exception": True,
        "print_on_execution_start": False,
        "memory_usage_poll_interval_s": None,  # a thread per task, whose result nothing reads
        # Our supervisor detects a stall (run.stall_s) and can list what is in flight.
        "execution_no_progress_timeout_s": -1,
    }
    set_known(context, settings)
    set_callbacks(context, [ExecutorSeen])


def _init(
    ray: Any,
    address: str | None,
    server: ForkServer | None,
    folder: RayFolder | None,
) -> None:
    common: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is not None:
        _reach(address)
        ray.init(address=address, runtime_env=_remote_environment(), **common)
        return
    # Inside a Ray job RAY_ADDRESS is set, and the caller passes it; here Ray must be local.
    options: dict[str, Any] = {
        **common,
        "address": "local",
        "include_dashboard": False,
        "object_store_memory": embedded_store_bytes(),
        "_temp_dir": str(folder.path) if folder else None,
    }
    try:
        with applied(*START, ray=ray), applied(FORK, ray=ray, server=server):
            ray.init(**options)
    except BROKEN as error:
        if is_plain():
            raise
        # A patch has found its names, but Ray uses one of them for something else.
        log.debug("patched Ray does not start; starting it without patches: %r", error)
        _end(ray)
        ray.init(**options)


def _reach(address: str) -> None:
    """Check that a head listens at `HOST:PORT` and lets us in; Ray itself resolves `auto`.

    Raises:
        JobError: The cluster requires another token.
        OSError: Nothing listens there.
    """
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
        from ray.exceptions import RaySystemError

        # For a wrong token Ray itself reports only that it cannot connect.
        with contextlib.suppress(OSError, RuntimeError, RaySystemError):
            is_let_in(address)


def _remote_environment() -> dict[str, Any]:
    environment: dict[str, Any] = {"env_vars": {**WORKER_ENVIRONMENT, **NO_AUTOLOAD}}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # Not a submitted job: send this package along, so that driver and workers agree.
        environment["py_modules"] = [str(Path(__file__).parents[2])]
    return environment


def _silence_ray() -> None:
    """Keep messages of Ray out of the user's terminal; its log files still have them."""
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    # Ray attributes its deprecations to its caller.
    warnings.filterwarnings("ignore", message=r".*deprecated and will be removed in Ray")
    for name in ("ray", "ray.data", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


_TAKES_CONNECTIONS = "its head accepts connections; a run will show whether it lets us in"
LOCAL = ("auto", "local")
"""Addresses that Ray resolves itself; they name no cluster to log in to."""


def log_in(address: str) -> str:
    """Ask a cluster a question that it answers only after a login; describe the result.

    Args:
        address: `HOST:PORT` of its head, or `http://HOST:PORT` of its job API.

    Raises:
        JobError: The cluster does not let us in, or the address is wrong.
        InfraError: Nothing answers.
    """
    if address in LOCAL:
        return f"{address}: Ray looks for it when a run starts"
    if "://" in address:
        connect_job_api(address)
        return f"{address}: its job API answers and lets us in"
    return f"{address}: {_ask_head(address)}"


def _ask_head(address: str) -> str:
    set_remote()
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        raise JobError(f"--address {address}: write HOST:PORT of the cluster's head")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None
    from ray.exceptions import RaySystemError

    try:
        is_in = is_let_in(address)
    except (OSError, RuntimeError, RaySystemError) as error:
        raise InfraError(f"Ray at {address}: cannot connect: {one_line(error)}") from None
    return "its head answers and lets us in" if is_in else _TAKES_CONNECTIONS


def is_let_in(address: str) -> bool:
    """Ask the head of a cluster whether it accepts our token; False if this Ray cannot ask.

    Raises:
        JobError: It does not accept the token.
        OSError, RuntimeError, RaySystemError: It does not answer.
    """
    client = read("head client")
    if client is None:
        return False
    try:
        with native_errors_dropped():
            client(address=address).check_alive([], timeout=_REACH_S)
    except (AttributeError, TypeError) as error:
        log.debug("the head of this Ray has another interface: %s", error)
        return False
    except refused_errors():
        raise JobError(refused_token(f"Ray at {address}")) from None
    return True
