"""Follow the log of a job on a cluster to its end, where its JSON document is."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import InfraError
from pipeline.execution.submit.client import one_line, refusals_as_ours

log = logging.getLogger(__name__)

PAUSE_S = 1.0
_PAUSE_RATIO = 10
"""A pause is so many times as long as reading the log has taken: it is read whole each time."""


@dataclass
class Follower:
    """Follows the log of a job until the job has ended, through lost connections."""

    client: Any
    job_id: str
    _num_chars: int = 0

    def pass_on(self, write: Callable[[str], object]) -> Any:
        """Write what is new in the log until the job has ended; return Ray's details of the job.

        Raises:
            InfraError: The cluster has not answered for a while, or no longer knows the job.
        """
        while True:
            with refusals_as_ours(f"job {self.job_id}: the job may go on"):
                details = self.client.get_job_info(self.job_id)
            began = time.monotonic()
            try:
                whole = self.client.get_job_logs(self.job_id)
            except (InfraError, RuntimeError) as error:  # as of a node that is gone
                level = logging.WARNING if details.status.is_terminal() else logging.DEBUG
                log.log(level, "job %s: its log cannot be read: %s", self.job_id, one_line(error))
            else:
                new, self._num_chars = whole[self._num_chars :], len(whole)
                if new:
                    write(new)
            if details.status.is_terminal():
                return details
            time.sleep(max(PAUSE_S, _PAUSE_RATIO * (time.monotonic() - began)))


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
