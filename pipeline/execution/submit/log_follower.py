"""Follow the log of a job on a cluster to its end, where its JSON document is."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from pipeline.core.errors import InfraError
from pipeline.execution.submit.client import refusals_as_ours
from pipeline.execution.submit.retrying import one_line

log = logging.getLogger(__name__)

# A silent log is asked for again after this long: a dead connection looks like a quiet job.
_SILENCE_S = 60.0
PAUSE_S = 1.0


@dataclass
class Follower:
    """Follows the log of a job until the job has ended, through lost connections.

    In a thread of its own: a signal handler that raises inside an event loop may be swallowed by
    it, whereas the main thread, waiting for the queue, sees the error at once.
    """

    client: Any
    job_id: str
    _events: SimpleQueue[Any] = field(default_factory=SimpleQueue)
    _thread: threading.Thread | None = None
    _num_chars: int = 0

    def pass_on(self, write: Callable[[str], object]) -> Any:
        """Write the log until the job has ended; return Ray's details of the job.

        Raises:
            InfraError: The cluster has not answered for a while, or no longer knows the job.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)
            self._thread.start()
        while True:
            event = self._events.get()
            if isinstance(event, str):
                write(event)
            elif isinstance(event, Exception):
                raise event
            else:
                return event

    def _follow(self) -> None:
        try:
            self._events.put(self._until_the_end())
        except Exception as error:  # noqa: BLE001  # the main thread raises it
            self._events.put(error)

    def _until_the_end(self) -> Any:
        """Show the log until the job has ended, which only the API says.

        The end of a stream says nothing: a proxy that closes it looks like the end of the job.
        """
        from aiohttp import ClientError

        while True:
            with refusals_as_ours(f"job {self.job_id}: the job may go on"):
                details = self.client.get_job_info(self.job_id)
            if details.status.is_terminal():
                self._show_rest()
                return details
            try:
                asyncio.run(self._tail())
            except (ClientError, OSError, RuntimeError) as error:
                log.debug("job %s: its log broke off: %s", self.job_id, one_line(error))
            time.sleep(PAUSE_S)

    async def _tail(self) -> None:
        """Put new pieces of the log; a connection begins with the whole log again."""
        stream = self.client.tail_job_logs(self.job_id)
        to_skip = self._num_chars
        while True:
            piece = await asyncio.wait_for(anext(stream, None), _SILENCE_S)
            if piece is None:
                return
            new = piece[to_skip:]
            to_skip -= len(piece) - len(new)
            self._show(new)

    def _show_rest(self) -> None:
        """Put what the log of an ended job has beyond what was shown."""
        try:
            whole = self.client.get_job_logs(self.job_id)
        except (InfraError, RuntimeError) as error:  # as of a node that is gone
            log.warning("job %s: no end of its log: %s", self.job_id, one_line(error))
            return
        self._show(whole[self._num_chars :])

    def _show(self, new: str) -> None:
        if new:
            self._num_chars += len(new)
            self._events.put(new)


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
