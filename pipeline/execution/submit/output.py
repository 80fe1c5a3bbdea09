"""What a job on a cluster prints: its log as it comes, and its JSON document at the end."""

from __future__ import annotations

import json
from collections.abc import Callable


class JobOutput:
    """Passes a log on line by line, and keeps the document in it.

    The cluster's log is one stream: what the job writes to stdout and stderr, and what Ray adds.
    """

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write = write
        self._rest, self._document = "", ""

    def add(self, text: str) -> None:
        """Take a piece of the log, of whatever length."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._add_line(line)

    def end(self) -> str:
        """Pass on what is left; return the document, or nothing if there was none."""
        rest, self._rest = self._rest, ""
        if rest:
            self._add_line(rest)
        return self._document

    def _add_line(self, line: str) -> None:
        if _is_document(line):
            line, self._document = self._document, line
            if not line:
                return
        self._write(f"{line}\n")


def _is_document(line: str) -> bool:
    """Tell whether a line is the document of a run or, with `dates`, of a backfill."""
    if not line.startswith("{"):
        return False
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and not document.keys().isdisjoint(("status", "dates"))
