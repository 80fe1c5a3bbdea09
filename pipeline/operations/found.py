"""What an operation has found, as a dict whose text is what the command shows."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from pipeline.report.showing.printed import Printed

P = ParamSpec("P")


class Found(Printed, dict[str, Any]):
    """A dict for programs; `print` of it gives tables, without styles."""

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        return self


def printed(operation: Callable[P, dict[str, Any]]) -> Callable[P, Found]:
    """Let an operation return its dict as `Found`."""

    @functools.wraps(operation)
    def found(*args: P.args, **kwargs: P.kwargs) -> Found:
        return Found(operation(*args, **kwargs))

    return found
