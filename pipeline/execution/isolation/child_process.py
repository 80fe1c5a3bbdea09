"""A child process that works on rows and may crash or hang without taking its parent along.

It is a fresh Python (a fork of a process full of threads is none), loads what the work needs and no
more, and ends with its parent.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from time import monotonic
from typing import IO, Any, Protocol

import pyarrow as pa

from pipeline.core.errors import PipelineError
from pipeline.core.failures import Reason
from pipeline.core.figures import Counters
from pipeline.core.printable import clean_message
from pipeline.core.user_code import describe_user_error
from pipeline.process.liveness import still_alive, tell_parent
from pipeline.process.memory import LOOK_S, excess_message, taken_bytes
from pipeline.process.parent_death import die_with

log = logging.getLogger(__name__)

Step = Callable[[pa.Table, Counters], pa.Table]
"""Rows in, rows out; counts what it did."""

_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from pipeline.execution.isolation.child_process import serve; "
    "serve(int(sys.argv[2]), int(sys.argv[3]))"
)
_LOOK_S = 1.0
_TELL_S = 0.1
_LINE_BYTES = 4096
_END_S = 10.0
_LEAST_START_S = 60.0


class Work(Protocol):
    """What a child is to do; plain enough to be pickled."""

    def open(self) -> Mapping[str, Step]:
        """Load what is needed; return what is done at each stage."""
        ...


@dataclass(frozen=True)
class ChildResult:
    """What the child returned: the rows of its step, and what it counted."""

    rows: pa.Table
    counters: Counters


@dataclass(frozen=True)
class ChildExit:
    """How a child ended."""

    reason: Reason
    message: str
    had_started: bool = True
    """False: it ended while it started, so no row is the cause."""
    input_name: str = ""
    """Which of several inputs it worked on; '' if it worked on the only one, or on none."""
    max_bytes: int = 0
    """The limit of its memory, if it was ended for that; otherwise 0."""


@dataclass(frozen=True)
class _Begun:
    """Says before an answer which input a child works on."""

    input_name: str


@dataclass(frozen=True)
class _Alive:
    """Says before an answer that a child gets on."""


class Child:
    """Starts a process when it has to, and again after each end; has one at a time."""

    def __init__(
        self,
        work: Work,
        call_s: float,
        start_s: float,
        *,
        max_bytes: int | None = None,
        is_silent: bool = False,
    ) -> None:
        """Take the work.

        Args:
            work: What to do.
            call_s: How long one call may take without a step that is `still_alive`.
            start_s: How long a start may take, importing and loading the model; a minute at least.
            max_bytes: How much memory of its own it may take; None: any number.
            is_silent: What it writes, and libraries in it, goes to the debug log, escaped, and not
                to this process's standard error.
        """
        self._work, self._call_s, self._start_s = work, call_s, max(start_s, _LEAST_START_S)
        self._max_bytes, self._is_silent = max_bytes, is_silent
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> ChildExit | None:
        """Make sure that there is a process; return how it ended if it did while it started."""
        return self._start() if self._process is None else None

    def call(self, stage: str, rows: pa.Table, *, is_load: bool = False) -> ChildResult | ChildExit:
        """Let the child do its work at a stage.

        Args:
            stage: Its name.
            rows: What it works on.
            is_load: It loads a model, so it may take as long as a start.

        Raises:
            PipelineError: The work raised it.
        """
        if (ended := self.start()) is not None:
            return ended
        limit_s = self._start_s if is_load else self._call_s
        answer = self._ask((stage, _to_bytes(rows)), limit_s)
        if isinstance(answer, ChildExit):
            return answer
        data, counters = answer
        return ChildResult(_from_bytes(data), counters)

    def close(self) -> None:
        """End the process, with all that it started, and wait for its end."""
        process, pipe = self._process, self._pipe
        self._process = self._pipe = None
        if pipe is not None:
            pipe.close()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _start(self) -> ChildExit | None:
        self._pipe, theirs = Pipe()
        with theirs:
            arguments = (json.dumps(sys.path), str(theirs.fileno()), str(os.getpid()))
            self._process = subprocess.Popen(  # noqa: S603  # this very Python
                [sys.executable, "-X", "faulthandler", "-c", _CHILD, *arguments],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE if self._is_silent else None,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        if self._is_silent:
            threading.Thread(target=_log, args=(self._process.stderr,), daemon=True).start()
        answer = self._ask(self._work, self._start_s)
        if not isinstance(answer, ChildExit):
            return None
        message = f"while it was started, {answer.message}"
        return replace(answer, message=message, had_started=False)

    def _ask(self, request: Any, limit_s: float) -> Any:
        """Return the answer, or how the child ended; what it raised is raised."""
        process, pipe = self._process, self._pipe
        assert process is not None, "started before"
        assert pipe is not None, "started before"
        until_s, name = monotonic() + limit_s, ""
        try:
            pipe.send(request)
            while isinstance(
                answer := self._receive(process, pipe, until_s, limit_s), _Begun | _Alive
            ):
                if isinstance(answer, _Begun):
                    name = answer.input_name
                else:
                    until_s = monotonic() + limit_s
                    still_alive()
        except (EOFError, ConnectionError):
            answer = self._reap(process)
        if isinstance(answer, PipelineError):
            self.close()
            raise answer
        return replace(answer, input_name=name) if isinstance(answer, ChildExit) else answer

    def _receive(
        self, process: subprocess.Popen[bytes], pipe: Connection, until_s: float, limit_s: float
    ) -> Any:
        look_s, most = (_LOOK_S, None) if self._max_bytes is None else (LOOK_S, self._max_bytes)
        while not pipe.poll(max(0.0, min(look_s, until_s - monotonic()))):
            if process.poll() is not None:  # another process may hold its end of the pipe
                return self._reap(process)
            if most is not None and taken_bytes(process.pid) > most:
                self.close()
                return ChildExit(Reason.OUT_OF_MEMORY, excess_message(most), max_bytes=most)
            if monotonic() >= until_s:
                self.close()
                return ChildExit(Reason.TIMEOUT, f"no result after {limit_s:g} s")
        return pipe.recv()

    def _reap(self, process: subprocess.Popen[bytes]) -> ChildExit:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
        code = process.poll()
        self.close()
        if code is None:
            return ChildExit(Reason.NATIVE_CRASH, "its process stopped answering")
        return describe_exit(code)


def _log(stream: IO[bytes]) -> None:
    """Log what a child writes until it ends: names in a model file may hold any bytes."""
    with stream:
        while line := stream.readline(_LINE_BYTES):
            log.debug("a child says: %s", clean_message(line.decode(errors="backslashreplace")))


def describe_exit(code: int) -> ChildExit:
    """Say what an exit code means, negative ones being signals."""
    if code == -signal.SIGKILL:
        message = "its process was killed, as happens when memory runs out"
        return ChildExit(Reason.OUT_OF_MEMORY, message)
    if code < 0:
        return ChildExit(
            Reason.NATIVE_CRASH, f"its process was ended by {signal.Signals(-code).name}"
        )
    return ChildExit(Reason.NATIVE_CRASH, f"its process ended itself with exit code {code}")


def serve(descriptor: int, parent: int) -> None:
    """Be the child: open the work that comes first, then work on whatever rows come."""
    die_with(parent)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with Connection(descriptor) as pipe, contextlib.suppress(EOFError, ConnectionError):
        try:
            steps = pipe.recv().open()
            tell_parent(lambda name: pipe.send(_Begun(name)), _telling(pipe))
            pipe.send(None)
            while True:
                stage, data = pipe.recv()
                counters: Counters = {}
                rows = steps[stage](_from_bytes(data), counters)
                pipe.send((_to_bytes(rows), counters))
        except PipelineError as error:
            pipe.send(error)
        except (EOFError, ConnectionError):
            raise
        except Exception as error:  # noqa: BLE001  # it goes on in the parent
            pipe.send(PipelineError(describe_user_error(error)))


def _telling(pipe: Connection) -> Callable[[int, int], None]:
    """Return what tells a parent now and then that this thread, which answers it, gets on."""
    answering_thread, sent_s = threading.get_ident(), monotonic()

    def tell(_num_rows: int, _num_tokens: int) -> None:
        nonlocal sent_s
        # Another thread's steps are no progress of what the parent waits for.
        if threading.get_ident() == answering_thread and monotonic() - sent_s >= _TELL_S:
            sent_s = monotonic()
            pipe.send(_Alive())

    return tell


def _to_bytes(rows: pa.Table) -> bytes:
    # Pickling would take along all that a slice of a table is a slice of.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
