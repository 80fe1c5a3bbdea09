"""Patches that keep this process's own signals and output as they are while Ray is in it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

log = logging.getLogger(__name__)


@contextlib.contextmanager
def talk_to_log(ray: Any) -> Iterator[None]:
    """Keep what Ray's processes tell their driver out of its output: "20 retries remaining"."""
    with patch.object(ray._private.worker, "print_to_stdstream", _to_log):
        yield


def _to_log(said: dict[str, Any], *_: Any, **__: Any) -> None:
    log.debug("Ray says: %s", " ".join(" ".join(said.get("lines", ())).split()))


@contextlib.contextmanager
def own_sigterm(ray: Any) -> Iterator[None]:
    """Keep our handler of SIGTERM: Ray's ends the process with another exit code."""
    with patch.object(ray._private.utils, "set_sigterm_handler", _do_nothing):
        yield


def _do_nothing(_: Any) -> None:
    pass
