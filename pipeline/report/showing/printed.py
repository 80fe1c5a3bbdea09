"""What makes a result print, and a notebook show it, as the command of its operation does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from pipeline.process.screen import as_lines


class Printed(ABC):
    """A result whose text is what its `shown` gives, as tables without styles."""

    @abstractmethod
    def shown(self) -> Mapping[str, Any]:
        """Return what a terminal has room for."""

    def __str__(self) -> str:
        from pipeline.report.showing.document_table import render_document

        return as_lines(render_document(dict(self.shown()))).rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the same for a notebook, escaped."""
        from pipeline.report.showing.notebook import text_html

        return text_html(str(self))
