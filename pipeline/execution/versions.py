"""Differences between versions of Ray, from 2.51 to the newest; no other file checks a version."""

from __future__ import annotations

import contextlib
import inspect
import logging
import platform
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.execution.private_names import read

log = logging.getLogger(__name__)

_CALLBACKS = "execution_callbacks"
_INITIAL = "initial_size"
_CALLS = "max_concurrent_calls_per_actor"
_GIVEN = "max_tasks_in_flight_per_actor"
_MISMATCH = re.compile(r"cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)")
OLDEST = "2.51"
"""The oldest Ray that is tested."""


def actor_pool(min_size: int, max_size: int, given: int | None = None) -> Any:
    """Return a pool of actors that starts all actors at once, if this Ray can.

    Otherwise actors start one by one, and earlier stages, which start at once, get the nodes.

    Args:
        given: Most calls that an actor runs or has waiting; None: the default of Ray.
    """
    from ray.data import ActorPoolStrategy

    sizes = {"min_size": min_size, "max_size": max_size}
    if _INITIAL in inspect.signature(ActorPoolStrategy).parameters:
        sizes[_INITIAL] = max_size
    if given is not None:
        sizes[_GIVEN] = given
    return ActorPoolStrategy(**sizes)


def with_calls_at_once(options: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the options of an actor pool whose actors run several calls at once.

    If the actor pools of this Ray have no such option, there is one call at a time. Newer pools
    take the number; for older ones it is an option of the actor.

    Args:
        options: The options of `map_batches`, with `compute`.
        number: Concurrent calls per actor.
    """
    pool = options["compute"]
    known = inspect.signature(type(pool)).parameters
    if "enable_true_multi_threading" not in known:
        return dict(options)
    names = [name for name in ("min_size", "max_size", _INITIAL, _GIVEN) if name in known]
    sizes = {name: getattr(pool, name) for name in names}
    threads: dict[str, Any] = {"enable_true_multi_threading": True}
    if _CALLS in known:
        return {**options, "compute": type(pool)(**sizes, **threads, **{_CALLS: number})}
    return {**options, "compute": type(pool)(**sizes, **threads), "max_concurrency": number}


def set_callbacks(context: Any, callbacks: list[type]) -> None:
    """Register callbacks of executions: by class from 2.55 on, by object before."""
    if hasattr(context, "custom_execution_callback_classes"):
        context.custom_execution_callback_classes = callbacks
    else:
        context.set_config(_CALLBACKS, [callback() for callback in callbacks])


def set_known(context: Any, settings: Mapping[str, Any]) -> None:
    """Set the settings that this DataContext has; `execution_no_progress_timeout_s` is of 2.59."""
    for name, value in settings.items():
        if hasattr(context, name):
            setattr(context, name, value)


def refused_errors() -> tuple[type[Exception], ...]:
    """Return the errors of Ray for a refused token; none before 2.52, which has no tokens."""
    return known_errors("AuthenticationError")


def knows_tokens() -> bool:
    """Tell whether this Ray can require a token."""
    return bool(refused_errors())


def known_errors(*names: str) -> tuple[type[Exception], ...]:
    """Return the exceptions of Ray with these names that this version has."""
    from ray import exceptions

    errors = (getattr(exceptions, name, None) for name in names)
    return tuple(error for error in errors if error is not None)


def connected_ray() -> Any | None:
    """Return the module of Ray if this process is connected to one, otherwise None."""
    ray = sys.modules.get("ray")
    return ray if ray is not None and ray.is_initialized() else None


def session_folder() -> Path:
    """Return the folder of Ray's session on this node; without Ray, the temporary folder.

    From 2.55 on the runtime context has it, before only private names do. Without those, use the
    temporary folder of the system, which the processes of the node share as well.
    """
    if (ray := connected_ray()) is None:
        return Path(tempfile.gettempdir())
    context = ray.get_runtime_context()
    if hasattr(context, "get_temp_dir") and hasattr(context, "get_session_name"):
        return Path(str(context.get_temp_dir()), str(context.get_session_name()))
    with contextlib.suppress(AttributeError):
        return Path(str(read("node").get_session_dir_path()))
    return Path(tempfile.gettempdir())


def require_supported(where: str, version: str) -> None:
    """Refuse a Ray that is too old.

    Args:
        where: The start of the message.
        version: Such as `2.60.0`; anything else counts as a future version.

    Raises:
        JobError: It is older than `OLDEST`.
    """
    match = re.match(r"(\d+)\.(\d+)", version)
    if match and (int(match[1]), int(match[2])) < tuple(map(int, OLDEST.split("."))):
        raise JobError(f"{where} Ray {version}, and the pipeline needs Ray {OLDEST} or newer")


def note_other_version(where: str, version: str) -> None:
    """Log if a cluster has another minor version of Ray than this process.

    Args:
        where: The cluster, the start of the line.
        version: The version of the cluster, such as `2.60.0`.
    """
    import ray

    if version.split(".")[:2] != ray.__version__.split(".")[:2]:
        log.info(
            "%s runs Ray %s, and here is Ray %s: the job runs on the cluster's",
            where,
            clean_message(version),
            ray.__version__,
        )


def different_versions(message: str) -> str | None:
    """Return one line if an error says that Ray or Python of a cluster differs, else None.

    Args:
        message: The message of the error of Ray.
    """
    match = _MISMATCH.search(message)
    if match is None:
        return None
    import ray

    return (
        f"it runs Ray {match[1]} on Python {match[2]}, this process Ray {ray.__version__} on "
        f"Python {platform.python_version()}: install the cluster's versions here, or use "
        "`pipeline submit`, whose job runs on the cluster's"
    )
