"""What the environment says to Ray and to its workers."""

from __future__ import annotations

import os

from pipeline.core.errors import JobError
from pipeline.execution.auth_token import make_private_token, send_token

# glibc gives large buffers back to the kernel and faults them in again; this keeps them.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
REMOTE_ENVIRONMENT = {
    # Ray's 20 tries take a quarter of an hour where nothing answers, 20 s where the token is wrong.
    "RAY_NUM_REDIS_GET_RETRIES": "3",
    # Otherwise the half of the cluster that Ray Data reserves for a driver is free only three
    # minutes after that was killed, and the run that goes on stages next to nothing meanwhile.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}
# Whatever the environment of the cluster's nodes says.
NO_AUTOLOAD = {
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "0",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR": "0",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE": "0",
}
_EMBEDDED_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray ends workers that idle for a second; the next slice then waits for new imports of torch.
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A raylet asks for its own object store before that listens, and looks again after a second.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
# The newer and the older name; both may be read.
_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ALLOCATOR = "expandable_segments:True"


def set_embedded() -> None:
    """Set what an embedded Ray and its workers are to find, and make its token."""
    make_private_token()
    os.environ.update({**_EMBEDDED_ENVIRONMENT, **_with_defaults(WORKER_ENVIRONMENT)})


def set_remote() -> None:
    """Set what a driver needs to connect to a cluster, and send the cluster's token."""
    os.environ.update(_with_defaults(REMOTE_ENVIRONMENT))
    send_token()


def set_gpu_allocator() -> None:
    """Let torch's memory of a GPU grow in place, so that batches of many sizes leave no holes.

    Called before CUDA starts in this process. What the environment says already stays.
    """
    if not any(name in os.environ for name in _ALLOCATOR_NAMES):
        os.environ.update(dict.fromkeys(_ALLOCATOR_NAMES, _ALLOCATOR))


def refuse_autoload() -> None:
    """Refuse variables by which Ray Data unpickles, and so runs, what lies in a Parquet file."""
    for name, value in os.environ.items():
        if name.startswith("RAY_DATA_AUTOLOAD_") and value.lower() not in ("", "0", "false"):
            raise JobError(f"{name}={value}: it lets input files run code; unset it")


def _with_defaults(values: dict[str, str]) -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in values.items()}
