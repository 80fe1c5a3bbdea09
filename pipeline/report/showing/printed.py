"""What makes a result print, and a notebook show it, as the command of its operation does."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec

from pipeline.process.screen import as_lines

P = ParamSpec("P")


class Printed(ABC):
    """A result whose text is what its `shown` gives, as tables without styles."""

    @abstractmethod
    def shown(self) -> Mapping[str, Any]:
        """Return what a terminal has room for."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Return the form of `--json`."""

    def __str__(self) -> str:
        from pipeline.report.showing.document_table import render_document

        return as_lines(render_document(self.shown())).rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the same for a notebook, escaped."""
        from pipeline.report.showing.notebook import text_html

        return text_html(str(self))


class Found(Printed, dict[str, Any]):
    """A dict for programs; `print` of it gives tables, without styles."""

    def shown(self) -> dict[str, Any]:
        """Return what a terminal has room for."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return all of it."""
        return dict(self)


def printed(operation: Callable[P, dict[str, Any]]) -> Callable[P, Found]:
    """Let an operation return its dict as `Found`."""

    @functools.wraps(operation)
    def found(*args: P.args, **kwargs: P.kwargs) -> Found:
        return Found(operation(*args, **kwargs))

    return found
