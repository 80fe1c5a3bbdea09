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

# Otherwise glibc returns large buffers to the kernel and faults them in again.
WORKER_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": "-1",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_ARENA_MAX": "1",
}
REMOTE_ENVIRONMENT = {
    # The 20 tries of Ray take a quarter of an hour if nothing answers, 20 s for a wrong token.
    "RAY_NUM_REDIS_GET_RETRIES": "3",
    # Otherwise the half of the cluster that Ray Data reserves for a driver is released only three
    # minutes after the driver was killed, and the resumed run stages next to nothing meanwhile.
    "RAY_DATA_AUTOSCALING_REQUEST_EXPIRE_TIME_S": "30",
}
# Overrides the environment of the cluster's nodes.
NO_AUTOLOAD = {
    "RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA": "0",
    "RAY_DATA_AUTOLOAD_PICKLE_OBJECT_SCALAR": "0",
    "RAY_DATA_AUTOLOAD_PYEXTENSIONTYPE": "0",
}
_EMBEDDED_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # Ray ends workers that are idle for a second; the next slice would import torch again.
    "RAY_idle_worker_killing_time_threshold_ms": "3600000",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # A raylet connects to its object store before that listens, and tries again after a second.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "500",
}
# The newer and the older name; both may be read.
_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_ALLOCATOR = "expandable_segments:True"


def set_embedded() -> None:
    """Set the environment of an embedded Ray and its workers, and make its token."""
    make_private_token()
    if auth_mode(os.environ) != "disabled":
        _ask_for_token()
    os.environ.update({**_EMBEDDED_ENVIRONMENT, **_with_defaults(WORKER_ENVIRONMENT)})


def _ask_for_token() -> None:
    """Let the Ray that is started here require a token, as only 2.59 and newer do by default."""
    os.environ["RAY_AUTH_MODE"] = "token"
    if (
        "ray" in sys.modules
    ):  # it has already read the environment, and must be told to read it again
        look_again = read("settings")
        if look_again is None:
            del os.environ["RAY_AUTH_MODE"]
        else:
            look_again("")


def set_remote() -> None:
    """Set the environment for a connection to a cluster, and send the cluster's token."""
    os.environ.update(_with_defaults(REMOTE_ENVIRONMENT))
    send_token()


def set_gpu_allocator() -> None:
    """Let the GPU memory of torch grow in place, so that batches of many sizes leave no holes.

    Call this before CUDA starts in this process. Existing settings are kept.
    """
    if not any(name in os.environ for name in _ALLOCATOR_NAMES):
        os.environ.update(dict.fromkeys(_ALLOCATOR_NAMES, _ALLOCATOR))


def refuse_autoload() -> None:
    """Refuse variables that let Ray Data unpickle, and so run, the content of a Parquet file."""
    for name, value in os.environ.items():
        if name.startswith("RAY_DATA_AUTOLOAD_") and value.lower() not in ("", "0", "false"):
            raise JobError(f"{name}={value}: it lets input files run code; unset it")


def _with_defaults(values: dict[str, str]) -> dict[str, str]:
    return {name: os.environ.get(name, value) for name, value in values.items()}


def auth_mode(environment: Mapping[str, str]) -> str:
    """Return the value of RAY_AUTH_MODE, `token` or `disabled`; '' if it is not set."""
    return environment.get("RAY_AUTH_MODE", "").strip().lower()


def has_token(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment has a token for a cluster."""
    return bool(environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"))


def sends_token(environment: Mapping[str, str]) -> bool:
    """Tell whether requests to a cluster carry a token with this environment."""
    mode = auth_mode(environment)
    named = has_token(environment) and mode != "disabled"
    return named or (mode == "token" and token_file(environment).exists())


def token_file(environment: Mapping[str, str]) -> Path:
    """Return the file from which Ray reads its token if no variable has it."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else home_folder() / ".ray" / "auth_token"


def about_home(error: Exception) -> str:
    """Return a hint for an error of Ray that cannot make its folder in the home folder, or ''."""
    if not isinstance(error, OSError) or "/.ray" not in str(error.filename):
        return ""
    return ": Ray keeps a token there; set HOME to a folder that this user may write to"


def send_token() -> bool:
    """Turn on token authentication if the environment has a token for the cluster.

    The token in the home folder does not count: it is that of this machine, and Ray does not send
    it to a cluster that is given by its address.

    Returns:
        Whether requests to the cluster carry a token.
    """
    if has_token(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return auth_mode(os.environ) == "token"


def authorization() -> dict[str, str]:
    """Return the header with the current token; {} if no token is to be sent.

    Ray reads a token once per process; an expired token is replaced in its file meanwhile.
    """
    if auth_mode(os.environ) != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    with contextlib.suppress(OSError):  # Ray itself reports a missing token
        token = token or token_file(os.environ).read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def refused_token(where: str) -> str:
    """Return the message that a cluster refuses the token or requires one, and what to set.

    Args:
        where: The cluster, the start of the message.
    """
    head = "set RAY_AUTH_TOKEN to that of its head"
    if auth_mode(os.environ) != "token":
        return f"{where}: the cluster wants a token: {head} (and RAY_AUTH_MODE=token for ray start)"
    sent = "RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
    return f"{where}: the cluster wants another token than that of {sent}: {head}"


def make_private_token() -> None:
    """Make the token of an embedded Ray before Ray does, which would make it readable for all.

    An existing token of ours becomes private: whoever reads it can run code as this user.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or auth_mode(os.environ) == "disabled":
        return
    path = token_file(os.environ)
    with contextlib.suppress(OSError):  # Ray will report the same error
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
    """Tell whether other users may read or write a file."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))


VISIBLE = "CUDA_VISIBLE_DEVICES"
_UNTOUCHED = "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"

Given = TypeVar("Given")
Made = TypeVar("Made")


@contextlib.contextmanager
def no_gpus() -> Iterator[None]:
    """Hide the GPUs of the node from a task that has none.

    Otherwise user code that computes on any GPU would take half a GiB of its memory in each
    decoder. The environment is restored: the process may get a GPU for its next task.
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
    """Return the stage with all GPUs hidden."""

    @functools.wraps(stage)
    def hidden(block: Given) -> Made:
        with no_gpus():
            return stage(block)

    return hidden


def settle_gpus(num_gpus: float) -> None:
    """Let the process of an actor see the GPU that Ray gave it, or no GPU.

    Raises:
        InfraError: torch sees more GPUs than Ray gave.
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
        given: The ids of the GPUs from Ray; empty if an old Ray does not tell.
        num_seen: Number of devices that torch sees.
    """
    if not given or num_seen <= len(given):
        return ""
    return (
        f"Ray gave this actor GPU {', '.join(given)}, and torch sees {num_seen} GPUs, of which "
        f"every actor would take the first: unset {_UNTOUCHED} where Ray is started"
    )
