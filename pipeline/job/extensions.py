"""The names that a job file may give for what is registered in the folders above this one."""

from __future__ import annotations

from typing import Any

from pydantic_core import PydanticKnownError

from pipeline.core import registry
from pipeline.core.errors import JobError


def registered(group: str, name: str, also: tuple[str, ...] = ()) -> Any:
    """Return what is registered by a name that a job file gives; None for a name of `also`.

    Raises:
        PydanticKnownError: There is none, said as of a fixed choice.
        ValueError: The distribution that brings it is broken.
    """
    if name in also:
        return None
    try:
        return registry.load(group, name)
    except KeyError:
        *most, last = (repr(each) for each in (*also, *registry.names(group)))
        expected = f"{', '.join(most)} or {last}" if most else last
        raise PydanticKnownError("literal_error", {"expected": expected}) from None
    except JobError as error:
        raise ValueError(str(error)) from None
