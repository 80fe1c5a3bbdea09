"""Connect to Ray: an embedded one, or a cluster; and say what hardware it has."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import secrets
import socket
import sys
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

from pipeline.core import native_exit
from pipeline.core.errors import InfraError, JobError, PipelineError
from pipeline.core.heartbeat import beat
from pipeline.core.interrupts import reason
from pipeline.core.terminal import native_errors_to, own_signal_handlers
from pipeline.execution.cluster import health
from pipeline.execution.cluster.executor_wait import WaitForNews
from pipeline.execution.cluster.in_flight import ExecutorSeen
from pipeline.execution.embedded.driver_actors import data_in_driver
from pipeline.execution.embedded.forkserver import ForkServer, fork_workers
from pipeline.execution.embedded.minimal_head import small_ray
from pipeline.execution.embedded.ray_folder import RayFolder
from pipeline.execution.environment import (
    NO_AUTOLOAD,
    WORKER_ENVIRONMENT,
    refuse_autoload,
    set_embedded,
    set_remote,
)
from pipeline.plan.allocation import Hardware

log = logging.getLogger(__name__)
_STORE_SHARE = 0.25
_STORE_MIN_BYTES = 256 << 20
_STORE_MAX_BYTES = 8 << 30
_REACH_S = 10.0
_LOOK_S = 0.02


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[tuple[Hardware, float]]:
    """Start an embedded Ray, or connect to the cluster at `address`.

    Yields:
        The hardware, and the seconds that it took (importing Ray included).

    Raises:
        JobError: `address` is of another kind, or the environment lets Ray unpickle what it reads.
        InfraError: No cluster answers at `address`.
    """
    refuse_autoload()
    started = perf_counter()
    if address is None:
        set_embedded()
    else:
        set_remote()
    with contextlib.ExitStack() as own:
        ray = _shared() or (_SHARING.get() or own).enter_context(_connected(address))
        with health.watched(ray, address):
            beat("connected to Ray")
            _configure_data()
            with (
                _lean_data(),
                data_in_driver(ray) if address is None else contextlib.nullcontext(),
            ):
                yield _hardware(ray), perf_counter() - started


def _shared() -> Any:
    """Return the module of the Ray that the body of `share_ray` has connected; None without."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return None
    if not _SHARING.get():
        raise JobError(
            "Ray is already initialised in this process: call ray.shutdown() first, a run starts "
            "its own; with --address HOST:PORT another process can run on a Ray that is there"
        )
    _silence_ray()
    return ray


@contextlib.contextmanager
def _connected(address: str | None) -> Iterator[Any]:
    """Connect to Ray in the body; yields its module."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(_ray_folder()) if address is None else None
        if folder:
            stack.enter_context(native_errors_to(folder.native_log))
        server = stack.enter_context(
            fork_workers() if address is None else contextlib.nullcontext()
        )
        import ray

        native_exit.divert(ray._raylet.__file__)
        stack.enter_context(_no_talk(ray))
        try:
            _connect(ray, address, server, folder)
        except BaseException:
            health.end(ray)  # what it has started
            raise
        if folder is None:
            name = f"driver-native-{secrets.token_hex(8)}.err"
            logs = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
            stack.enter_context(native_errors_to(logs / name))
        stack.callback(health.end, ray)
        yield ray


@contextlib.contextmanager
def _ray_folder() -> Iterator[RayFolder]:
    """Make the folder of an embedded Ray, for the body; what went wrong there leaves its logs."""
    folder, keep_logs = RayFolder(), log.isEnabledFor(logging.DEBUG)
    try:
        yield folder
    except BaseException as error:
        why = reason() if isinstance(error, KeyboardInterrupt) else error
        keep_logs |= isinstance(why, InfraError) or not isinstance(why, PipelineError)
        raise
    finally:
        folder.end(keep_logs=keep_logs)


@contextlib.contextmanager
def _no_talk(ray: Any) -> Iterator[None]:
    """Keep what Ray's processes tell their driver out of its output: "20 retries remaining"."""
    with patch.object(ray._private.worker, "print_to_stdstream", _to_log):
        yield


def _to_log(said: dict[str, Any], *_: Any, **__: Any) -> None:
    log.debug("Ray says: %s", " ".join(" ".join(said.get("lines", ())).split()))


def _connect(
    ray: Any, address: str | None, server: ForkServer | None, folder: RayFolder | None
) -> None:
    """Connect.

    Raises:
        InfraError: It does not come to be.
    """
    # 1.5 s of importing, while Ray's own processes start.
    importing = threading.Thread(target=_import_data, daemon=True)
    importing.start()
    _silence_ray()  # after its import, which sets filters of its own
    try:
        # Ray's own, which ends the process with another code, would be there for seconds.
        no_handler = patch.object(ray._private.utils, "set_sigterm_handler", _do_nothing)
        with own_signal_handlers(), no_handler:
            _init(ray, address, server, folder)
    except PipelineError:
        raise
    except Exception as error:  # noqa: BLE001  # Ray raises bare ones, too
        cause = health.trouble() or f"cannot connect: {' '.join(str(error).split())[:200]}"
        raise InfraError(f"Ray at {address or 'this machine'}: {cause}") from None
    finally:
        importing.join()


def _import_data() -> None:
    with contextlib.suppress(ImportError):  # whoever needs it imports it again, and says so
        importlib.import_module("ray.data")


_SHARING: ContextVar[contextlib.ExitStack | None] = ContextVar("_SHARING", default=None)


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, leaving stops it."""
    with contextlib.ExitStack() as stack:
        token = _SHARING.set(stack)
        try:
            yield
        finally:
            _SHARING.reset(token)


@contextlib.contextmanager
def _lean_data() -> Iterator[None]:
    """Let Ray Data wait for less before it looks what has ended, and keep less of it.

    A look waits until all tasks have ended, 0.1 s at most, and only then the next ones start: of
    tasks that take milliseconds, each of the few readers would run ten a second. Of every block it
    keeps statistics, which no run asks for.
    """
    from ray.data._internal.execution import streaming_executor_state
    from ray.data._internal.execution.operators import map_operator

    with (
        patch.object(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S", _LOOK_S),
        patch.object(map_operator, "to_stats", _no_stats),
    ):
        yield


def _do_nothing(_: Any) -> None:
    pass


def _no_stats(blocks: Any) -> list[Any]:
    return []


def _configure_data() -> None:
    from ray.data import DataContext

    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.CRITICAL)  # an error reaches the user as ours, in one line
    context = DataContext.get_current()
    # Every slice leaves its task as a block of its own as soon as it is there.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    # Ray's own wrapper loses the cause on the way to the driver.
    context.raise_original_map_exception = True
    context.print_on_execution_start = False
    context.memory_usage_poll_interval_s = None  # a thread for each task, and nobody asks
    # What gets no further is seen by us (run.stall_s), who can say what is in flight.
    context.execution_no_progress_timeout_s = -1
    context.custom_execution_callback_classes = [ExecutorSeen, WaitForNews]


def _init(
    ray: Any, address: str | None, server: ForkServer | None, folder: RayFolder | None
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
    # Inside a Ray job RAY_ADDRESS is set and the caller passes it; here a local Ray is meant.
    with small_ray(ray, server):
        ray.init(
            address="local",
            include_dashboard=False,
            object_store_memory=embedded_store_bytes(),
            _temp_dir=str(folder.path) if folder else None,
            **common,
        )
    if server is not None:
        server.belongs_to(ray)


def _reach(address: str) -> None:
    """Check that something listens at `HOST:PORT`; Ray finds what `auto` means by itself.

    Raises:
        JobError: The address is a URL.
        OSError: Nothing listens there.
    """
    if "://" in address:
        raise JobError(
            f"--address {address}: write HOST:PORT of the cluster's head (its port is 6379 by "
            "default); http:// is for `pipeline submit`"
        )
    host, _, port = address.rpartition(":")
    if port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACH_S).close()


def _remote_environment() -> dict[str, Any]:
    environment: dict[str, Any] = {"env_vars": {**WORKER_ENVIRONMENT, **NO_AUTOLOAD}}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # Not a submitted job: send our own code along, so that driver and workers agree.
        environment["py_modules"] = [str(Path(__file__).parents[2])]
    return environment


def embedded_store_bytes() -> int:
    """Return the size of the object store that an embedded Ray gets."""
    import psutil

    memory = psutil.virtual_memory().total
    shared = psutil.disk_usage("/dev/shm").free if Path("/dev/shm").exists() else memory  # noqa: S108
    wanted = min(_STORE_SHARE * memory, 0.9 * shared, _STORE_MAX_BYTES)
    return int(max(_STORE_MIN_BYTES, wanted))


def _silence_ray() -> None:
    """Keep Ray's own talk out of the user's terminal; its log files still have everything."""
    warnings.filterwarnings("ignore", module=r"ray(\.|$)")
    # Ray attributes its own deprecations to whoever called it.
    warnings.filterwarnings("ignore", message=r".*deprecated and will be removed in Ray")
    for name in ("ray", "ray.data", "ray.serve", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _hardware(ray: Any) -> Hardware:
    total = ray.cluster_resources()
    limits = _autoscaler_limits()
    names = sorted(
        key.removeprefix("accelerator_type:")
        for key in total
        if key.startswith("accelerator_type:")
    )
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return Hardware(
        num_nodes=len(nodes),
        cpus=max(total.get("CPU", 0.0), limits.get("CPU", 0.0)),
        gpus=max(total.get("GPU", 0.0), limits.get("GPU", 0.0)),
        gpu_name=names[0] if names else None,
        node_cpus=tuple(node.get("CPU", 0.0) for node in nodes),
        node_gpus=tuple(node.get("GPU", 0.0) for node in nodes),
    )


def _autoscaler_limits() -> dict[str, float]:
    """Return what the autoscaler may grow the cluster to; empty without one."""
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})
