"""Private names of Ray, which may disappear with any version: look them up safely."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import os
import re
from typing import Any

from pipeline.core.environment import PLAIN_RAY

log = logging.getLogger(__name__)

_NAME = re.compile(r"(?P<module>[\w.]+):(?P<attributes>[\w.]*)(\((?P<parameters>[\w, ]*)\))?")

READS = {
    "autoscaler limits": "ray._private.state:state.get_max_resources_from_cluster_config",
    "actors": "ray._private.state:state.actor_table(actor_id)",
    "node": "ray._private.worker:_global_node",
    "settings": "ray._raylet:Config.initialize",
    "head client": "ray._raylet:GcsClient",
    "processors": "ray._private.utils:get_num_cpus(override_docker_cpu_warning)",
    "accelerators": "ray._private.accelerators:get_accelerator_manager_for_resource(resource_name)",
}
"""Private names that are only read, on any cluster; without one, less is known."""


class NameMissing(Exception):
    """Ray does not have the name, or uses it for something else."""


def is_plain() -> bool:
    """Tell whether private names of Ray must not be used."""
    return os.environ.get(PLAIN_RAY, "").strip().lower() not in ("", "0", "false")


def look_up(name: str) -> Any:
    """Return the object of a private name.

    Args:
        name: `module:attribute.attribute`, followed by `(parameter, ...)` if a function must have
            these parameters; `module:`, which gives None, if a module must exist.

    Raises:
        NameMissing: It does not exist, or the function has other parameters.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name}: not module:attribute")
    try:
        if not match["attributes"]:
            if importlib.util.find_spec(match["module"]) is None:
                raise NameMissing(name)
            return None
        value: Any = importlib.import_module(match["module"])
        for attribute in match["attributes"].split("."):
            value = getattr(value, attribute)
    except (ImportError, AttributeError):
        raise NameMissing(name) from None
    if match["parameters"] is not None:
        _require_parameters(name, value, match["parameters"])
    return value


def _require_parameters(name: str, function: Any, parameters: str) -> None:
    wanted = {parameter.strip() for parameter in parameters.split(",")}
    try:
        known = inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise NameMissing(name) from None
    if not wanted <= known.keys():
        raise NameMissing(name)


def read(what: str) -> Any:
    """Return the object of a name in `READS`; None if it is missing or must not be used."""
    if is_plain():
        return None
    try:
        return look_up(READS[what])
    except NameMissing as error:
        log.debug("Ray's %s is not read: no %s", what, error)
        return None
