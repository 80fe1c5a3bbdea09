"""Environment variables for Ray and its workers: settings, the token, the GPUs a process sees."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from pipeline.core.errors import InfraError, JobError
from pipeline.core.private_files import home_folder
from pipeline.execution.private_names import read

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
    if auth_mode(os.environ) != "disabled":
        _ask_for_token()
    os.environ.update({**_EMBEDDED_ENVIRONMENT, **_with_defaults(WORKER_ENVIRONMENT)})


def _ask_for_token() -> None:
    """Let the Ray that is started here ask for a token; by itself only 2.59 and newer does."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if "ray" in sys.modules:  # it has read the environment, and looks again only if it is told to
        look_again = read("settings")
        if look_again is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            look_again("")


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


def auth_mode(environment: Mapping[str, str]) -> str:
    """Return what RAY_AUTH_MODE says, `token` or `disabled`; '' where it says nothing."""
    return environment.get("RAY_AUTH_MODE", "").strip().lower()


def has_token(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment brings a token for a cluster."""
    return bool(environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"))


def sends_token(environment: Mapping[str, str]) -> bool:
    """Tell whether requests to a cluster carry a token, by what the environment says."""
    mode = auth_mode(environment)
    named = has_token(environment) and mode != "disabled"
    return named or (mode == "token" and token_file(environment).exists())


def token_file(environment: Mapping[str, str]) -> Path:
    """Return the file from which Ray takes its token where no variable holds it."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else home_folder() / ".ray" / "auth_token"


def about_home(error: Exception) -> str:
    """Return what to add to an error of Ray if it cannot make its folder in the home folder."""
    if not isinstance(error, OSError) or "/.ray" not in str(error.filename):
        return ""
    return ": Ray keeps a token there; set HOME to a folder that this user may write to"


def send_token() -> bool:
    """Turn Ray's token authentication on where the environment has a token for the cluster.

    Not for the token in the home folder: that one is this machine's, and Ray itself sends it to
    no cluster that is named by its address.

    Returns:
        Whether requests to the cluster carry a token.
    """
    if has_token(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return auth_mode(os.environ) == "token"


def authorization() -> dict[str, str]:
    """Return the header that carries the token, as it is now; {} where none is to be sent.

    Ray reads a token once in a process; one that expires is replaced in its file meanwhile.
    """
    if auth_mode(os.environ) != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    with contextlib.suppress(OSError):  # Ray says itself that there is none
        token = token or token_file(os.environ).read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def refused_token(where: str) -> str:
    """Say that a cluster refuses the token that was sent, or wants one, and what to set.

    Args:
        where: The cluster, as the message begins.
    """
    head = "set RAY_AUTH_TOKEN to that of its head"
    if auth_mode(os.environ) != "token":
        return f"{where}: the cluster wants a token: {head} (and RAY_AUTH_MODE=token for ray start)"
    sent = "RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
    return f"{where}: the cluster wants another token than that of {sent}: {head}"


def make_private_token() -> None:
    """Make the token of an embedded Ray before Ray does, which would let everybody read it.

    One that is there and ours becomes private: who reads it can run code as we do.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or auth_mode(os.environ) == "disabled":
        return
    path = token_file(os.environ)
    with contextlib.suppress(OSError):  # Ray meets the same trouble, and says so
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if is_open_to_others(path) and path.stat().st_uid == os.getuid():
                path.chmod(0o600)
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def is_open_to_others(path: Path) -> bool:
    """Tell whether others than the owner may read or write a file."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


VISIBLE = "CUDA_VISIBLE_DEVICES"
_UNTOUCHED = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"

Given = TypeVar("Given")
Made = TypeVar("Made")


@contextlib.contextmanager
def no_gpus() -> Iterator[None]:
    """Hide the GPUs of the node from a task that has none.

    Code of the user that computes on a GPU where there is one would take half a GiB of memory on it
    in each decoder. Afterwards the process is as before: it may get a GPU for its next task.
    """
    before = os.environ.get(VISIBLE)
    os.environ[VISIBLE] = ""
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VISIBLE, None)
        else:
            os.environ[VISIBLE] = before


def without_gpus(stage: Callable[[Given], Made]) -> Callable[[Given], Made]:
    """Return a stage that sees no GPU."""

    @functools.wraps(stage)
    def hidden(block: Given) -> Made:
        with no_gpus():
            return stage(block)

    return hidden


def settle_gpus(num_gpus: float) -> None:
    """Let the process of an actor see the GPU that Ray gave it, and none if it gave none.

    Raises:
        InfraError: Torch sees more than Ray gave; with one line of what would be right.
    """
    if not num_gpus:
        os.environ[VISIBLE] = ""
        return
    import ray
    import torch

    from pipeline.inference.devices.accelerator import the_gpu

    num_seen = the_gpu().call(torch.cuda.device_count) if torch.cuda.is_available() else 0
    given = [
        str(gpu_id) for gpu_id in ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    ]
    if reason := too_many_reason(given, num_seen):
        raise InfraError(reason)


def too_many_reason(given: Sequence[str], num_seen: int) -> str:
    """Return why an actor would compute on a GPU that is not its own, or ''.

    Args:
        given: What Ray gave; an old Ray may not tell.
        num_seen: How many devices torch sees.
    """
    if not given or num_seen <= len(given):
        return ""
    return (
        f"Ray gave this actor GPU {', '.join(given)}, and torch sees {num_seen} GPUs, of which "
        f"every actor would take the first: unset {_UNTOUCHED} where Ray is started"
    )
