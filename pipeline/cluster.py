"""Connect to Ray and divide what it has: how many actors, how many readers, on what.

Everything is checked before anything starts: Ray Data waits forever for resources that the
cluster has not got.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO, TypeVar

from pipeline.errors import InfraError, JobError, find_cause
from pipeline.job import Resources

T = TypeVar("T")

# Logical CPUs of one reader. Small, because readers idle once the queue before the actors is full.
READER_CPUS = 0.25
_CPUS_PER_READER = 4
_MAX_WRITERS = 16
_MAX_ACTOR_RESTARTS = 20
_MAX_TASK_RETRIES = 3
_TASKS_PER_CPU = 2
# A row of the dataset is a slice, so whole blocks and batches of one row are the same thing;
# with GPUs Ray insists on a batch size.
_SLICE_BLOCKS: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
_ONE_SLICE: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
_STORE_SHARE = 0.25
_STORE_MIN_BYTES = 256 << 20
_STORE_MAX_BYTES = 8 << 30
# glibc gives large buffers back to the kernel and faults them in again; this keeps them.
_WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
_REACH_S = 10.0
_REMOTE_ENVIRONMENT = {
    # Ray's 20 tries take a quarter of an hour where nothing answers, 20 s where the token is wrong.
    "RAY_NUM_REDIS_GET_RETRIES": "3",
}
_EMBEDDED_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray ends workers that idle for a second; the next slice then waits for new imports of torch.
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Hardware:
    """What the cluster has (with autoscaling: may have)."""

    num_nodes: int
    cpus: float
    gpus: float
    gpu_name: str | None = None


@dataclass(frozen=True)
class Allocation:
    """Who gets what."""

    min_actors: int
    max_actors: int
    actor_cpus: float
    """Logical CPUs that an actor reserves; readers share the same cores."""
    actor_gpus: float
    actor_threads: int
    num_readers: int
    num_writers: int

    def read(self, num_units: int) -> dict[str, Any]:
        """Return the options of `read_datasource`."""
        return {
            "override_num_blocks": num_units,
            "concurrency": self.num_readers,
            "num_cpus": READER_CPUS,
        }

    def preprocess(self) -> dict[str, Any]:
        """Return the options of the stage that Ray fuses with the reading."""
        return {**_SLICE_BLOCKS, "num_cpus": READER_CPUS}

    def predict(self) -> dict[str, Any]:
        """Return the options of the actor pool."""
        from ray.data import ActorPoolStrategy

        return {
            **_ONE_SLICE,
            "compute": ActorPoolStrategy(min_size=self.min_actors, max_size=self.max_actors),
            "num_cpus": self.actor_cpus,
            "num_gpus": self.actor_gpus or None,
            "max_restarts": _MAX_ACTOR_RESTARTS,
            "max_task_retries": _MAX_TASK_RETRIES,
        }

    def write(self) -> dict[str, Any]:
        """Return the options of the writing stage: no CPU of its own, or the readers starve it."""
        from ray.data import TaskPoolStrategy

        return {
            **_SLICE_BLOCKS,
            "compute": TaskPoolStrategy(self.num_writers),
            "num_cpus": 0,
            "max_retries": _MAX_TASK_RETRIES,
        }


def allocate(resources: Resources, hardware: Hardware) -> Allocation:
    """Divide the cluster between actors and readers.

    Raises:
        JobError: The job asks for more than there is; names both numbers.
    """
    threads = resources.num_cpus or 1.0
    num_readers = max(1, int(hardware.cpus) // _CPUS_PER_READER)
    fit_cpus = max(1, math.floor(hardware.cpus / threads))
    fit_gpus = _fit_gpus(resources, hardware) if resources.num_gpus > 0 else fit_cpus
    # Beside a GPU, threads that nobody asked for are no reason to leave a GPU idle.
    are_cpus_asked_for = bool(resources.num_cpus) or resources.num_gpus == 0
    fit = min(fit_cpus, fit_gpus) if are_cpus_asked_for else fit_gpus
    wanted = resources.max_actors or max(fit, resources.min_actors or 1)
    needed = resources.min_actors or wanted
    if needed > fit_gpus and resources.num_gpus > 0:
        raise JobError(
            f"resources: {needed} actors x {resources.num_gpus:g} GPUs do not fit, the cluster "
            f"has {hardware.gpus:g} GPUs for {fit_gpus} such actors"
        )
    if needed * threads > hardware.cpus and are_cpus_asked_for:
        raise JobError(
            f"resources: {needed} actors x {threads:g} CPUs = {needed * threads:g} CPUs, "
            f"the cluster has {hardware.cpus:g}"
        )
    for_actors = hardware.cpus - READER_CPUS
    max_actors = min(wanted, fit)
    actor_cpus = min(threads, math.floor(1000 * for_actors / max_actors) / 1000)
    if actor_cpus <= 0:
        raise JobError(
            f"resources: {max_actors} actors and a reader of {READER_CPUS:g} CPUs do not fit the "
            f"cluster's {hardware.cpus:g} CPUs"
        )
    left = hardware.cpus - max_actors * actor_cpus
    return Allocation(
        min_actors=needed,
        max_actors=max_actors,
        actor_cpus=actor_cpus,
        actor_gpus=resources.num_gpus,
        actor_threads=max(1, int(threads)),
        num_readers=max(1, min(num_readers, int(left / READER_CPUS))),
        num_writers=max(1, min(_MAX_WRITERS, int(hardware.cpus) // _CPUS_PER_READER)),
    )


def _fit_gpus(resources: Resources, hardware: Hardware) -> int:
    if hardware.gpus < resources.num_gpus:
        raise JobError(
            f"resources.num_gpus = {resources.num_gpus:g}: the cluster has {hardware.gpus:g} GPUs; "
            "set it to 0 to run on the CPU, or connect to a cluster with GPUs (--address)"
        )
    if resources.num_gpus >= 1:
        if resources.num_gpus % 1:
            raise JobError(
                f"resources.num_gpus = {resources.num_gpus:g}: above 1 only whole numbers"
            )
        return math.floor(hardware.gpus / resources.num_gpus)
    # An actor is on one card: three of 0.3 fit a card, and what is left of it fits none.
    return math.floor(hardware.gpus) * math.floor(1 / resources.num_gpus + 1e-9)


@contextlib.contextmanager
def connect(address: str | None) -> Iterator[tuple[Hardware, float]]:
    """Start an embedded Ray, or connect to the cluster at `address`.

    Yields:
        The hardware, and the seconds that it took (importing Ray included).

    Raises:
        JobError: `address` is of another kind.
        InfraError: No cluster answers at `address`.
    """
    started = perf_counter()
    if address is None:
        os.environ.update({**_EMBEDDED_ENVIRONMENT, **_with_defaults(_WORKER_ENVIRONMENT)})
    else:
        os.environ.update(_with_defaults(_REMOTE_ENVIRONMENT))
        send_token()
    import ray

    _silence_ray()
    try:
        with _own_signal_handlers():
            if not (_SHARING.get() and ray.is_initialized()):
                _init(ray, address)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InfraError(f"Ray at {address or 'this machine'}: cannot connect: {reason}") from None
    try:
        with _native_errors_to_log(ray):
            _configure_data()
            yield _hardware(ray), perf_counter() - started
    finally:
        if not _SHARING.get():
            ray.shutdown()


_SHARING = ContextVar("_SHARING", default=False)


@contextlib.contextmanager
def share_ray() -> Iterator[None]:
    """Let the runs of the body share one Ray: the first `connect` starts it, leaving stops it."""
    token = _SHARING.set(True)
    try:
        yield
    finally:
        _SHARING.reset(token)
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()


def send_token() -> bool:
    """Turn Ray's token authentication on where the environment has a token for the cluster.

    Not for the token in the home folder: that one is this machine's, and Ray itself sends it to
    no cluster that is named by its address.

    Returns:
        Whether requests to the cluster carry a token.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def _configure_data() -> None:
    from ray.data import DataContext

    for handler in logging.getLogger("ray.data").handlers:
        if not isinstance(handler, logging.FileHandler):
            handler.setLevel(logging.ERROR)
    context = DataContext.get_current()
    # Every slice leaves its task as a block of its own as soon as it is there.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    # Ray's own wrapper loses the cause on the way to the driver.
    context.raise_original_map_exception = True
    context.print_on_execution_start = False


@contextlib.contextmanager
def ray_errors() -> Iterator[None]:
    """Translate what Ray raises into our own errors.

    Raises:
        PipelineError: One of ours that a worker raised, unwrapped.
        InfraError: Workers, nodes or objects were lost beyond Ray's retries.
    """
    from ray import exceptions

    try:
        yield
    except (exceptions.RayError, OSError) as error:
        ours = find_cause(error)
        if ours is not None:
            raise ours from None
        lost = (
            exceptions.RayActorError,
            exceptions.WorkerCrashedError,
            exceptions.ObjectLostError,
            exceptions.NodeDiedError,
            exceptions.OutOfMemoryError,
            exceptions.RaySystemError,
        )
        if isinstance(error, lost):
            reason = " ".join(str(error).split())[:300]
            raise InfraError(
                f"Ray lost workers more often than it may ({type(error).__name__}: {reason}); "
                "finished slices are kept, run again to go on"
            ) from error
        raise


def run_tasks(function: Callable[..., T], calls: Sequence[tuple[Any, ...]]) -> list[T]:
    """Run a function for every tuple of arguments as Ray tasks; results in the order of calls."""
    import ray

    remote = ray.remote(num_cpus=READER_CPUS, max_retries=_MAX_TASK_RETRIES)(_call)
    limit = max(_TASKS_PER_CPU, int(_TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    results: dict[int, T] = {}
    pending: dict[Any, int] = {}
    with ray_errors():
        for index, arguments in enumerate(calls):
            pending[remote.remote(function, arguments)] = index
            if len(pending) >= limit or index == len(calls) - 1:
                wanted = 1 if index < len(calls) - 1 else len(pending)
                ready, _ = ray.wait(list(pending), num_returns=wanted)
                for reference in ready:
                    results[pending.pop(reference)] = ray.get(reference)
    return [results[index] for index in range(len(calls))]


def _call(function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
    return function(*arguments)


@contextlib.contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Keep our handlers: Ray replaces the one of SIGTERM and exits with another code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _with_defaults(values: dict[str, str]) -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in values.items()}


def _init(ray: Any, address: str | None) -> None:
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
    ray.init(
        address="local",
        include_dashboard=False,
        object_store_memory=_store_bytes(),
        **common,
    )


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
    environment: dict[str, Any] = {"env_vars": _WORKER_ENVIRONMENT}
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        # Not a submitted job: send our own code along, so that driver and workers agree.
        environment["py_modules"] = [str(Path(__file__).parent)]
    return environment


@contextlib.contextmanager
def _native_errors_to_log(ray: Any) -> Iterator[None]:
    """Send what Ray's C++ core writes to file descriptor 2 to a file of the session.

    Only where the command line has moved `sys.stderr` to a descriptor of its own (`detach_stderr`).
    """
    if sys.stderr is None or not hasattr(sys.stderr, "fileno") or _fileno(sys.stderr) in (2, None):
        yield
        return
    folder = Path(ray._private.worker.global_worker.node.get_logs_dir_path())
    saved = os.dup(2)
    with (folder / "driver-native.err").open("ab") as target:
        os.dup2(target.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _fileno(stream: TextIO) -> int | None:
    try:
        return stream.fileno()
    except (OSError, ValueError):
        return None


def detach_stderr() -> None:
    """Give `sys.stderr` a descriptor of its own, so that descriptor 2 can be diverted."""
    if _fileno(sys.stderr) == 2:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8")


def _store_bytes() -> int:
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
    return Hardware(
        num_nodes=sum(1 for node in ray.nodes() if node["Alive"]),
        cpus=max(total.get("CPU", 0.0), limits.get("CPU", 0.0)),
        gpus=max(total.get("GPU", 0.0), limits.get("GPU", 0.0)),
        gpu_name=names[0] if names else None,
    )


def _autoscaler_limits() -> dict[str, float]:
    """Return what the autoscaler may grow the cluster to; empty without one."""
    from ray._private.state import state

    return dict(state.get_max_resources_from_cluster_config() or {})
