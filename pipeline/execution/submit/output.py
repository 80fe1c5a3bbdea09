"""What a job on a cluster prints: its log as it comes, and its JSON document at the end."""

from __future__ import annotations

import json
from collections.abc import Callable


class JobOutput:
    """Passes a log on, and keeps the document of a job that was run with `--json`.

    The cluster's log is one stream: what the job writes to stdout and stderr, and what Ray adds.
    """

    def __init__(self, write: Callable[[str], object], *, has_document: bool) -> None:
        self._write, self._has_document = write, has_document
        self._rest, self._document = "", ""

    def add(self, text: str) -> None:
        """Take a piece of the log, of whatever length."""
        if not self._has_document:
            self._write(text)
            return
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
    """Tell whether a line is the document of a command: an object with `status`."""
    if not line.startswith("{"):
        return False
    try:
        document = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "status" in document
