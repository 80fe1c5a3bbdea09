"""A child process that works on rows, and may crash or hang without its parent.

It is a new Python process, because a fork of a process with many threads is unsafe. It loads only
what the work needs, and ends with its parent.
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
"""Takes rows and counters; returns rows and adds to the counters."""

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
    """The work of a child; picklable."""

    def open(self) -> Mapping[str, Step]:
        """Load what is needed; return the step of each stage."""
        ...


@dataclass(frozen=True)
class ChildResult:
    """The result of a child: the rows of its step, and its counters."""

    rows: pa.Table
    counters: Counters


@dataclass(frozen=True)
class ChildExit:
    """The end of a child."""

    reason: Reason
    message: str
    had_started: bool = True
    """False if it ended while it started, so no row is the cause."""
    input_name: str = ""
    """The input on which it worked, if there are several; otherwise ''."""
    max_bytes: int = 0
    """The limit of its memory, if it exceeded that; otherwise 0."""


@dataclass(frozen=True)
class _Begun:
    """Sent before an answer: the input on which the child works."""

    input_name: str


@dataclass(frozen=True)
class _Alive:
    """Sent before an answer: the child gets on."""


class Child:
    """One process at a time, started when needed and again after each end."""

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
            work: The work.
            call_s: Time limit of a call between two calls of `still_alive`.
            start_s: Time limit of a start with imports and loading the model; at least a minute.
            max_bytes: Limit of its own memory; None: no limit.
            is_silent: Write its standard error, escaped, to the debug log.
        """
        self._work, self._call_s, self._start_s = work, call_s, max(start_s, _LEAST_START_S)
        self._max_bytes, self._is_silent = max_bytes, is_silent
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None

    def start(self) -> ChildExit | None:
        """Start a process unless there is one; return how it ended if it failed to start."""
        return self._start() if self._process is None else None

    def call(self, stage: str, rows: pa.Table, *, is_load: bool = False) -> ChildResult | ChildExit:
        """Let the child run a stage.

        Args:
            stage: The name of the stage.
            rows: The rows to work on.
            is_load: The call loads a model, so it may take as long as a start.

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
        """End the process and all that it started, and wait for its end."""
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
        """Return the answer, or how the child ended; raise the error that it raised."""
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
    """Log the output of a child until it ends; names in a model file may hold any bytes."""
    with stream:
        while line := stream.readline(_LINE_BYTES):
            log.debug("child process: %s", clean_message(line.decode(errors="backslashreplace")))


def describe_exit(code: int) -> ChildExit:
    """Describe an exit code; a negative one is minus a signal."""
    if code == -signal.SIGKILL:
        message = "its process was killed, as happens when memory runs out"
        return ChildExit(Reason.OUT_OF_MEMORY, message)
    if code < 0:
        return ChildExit(
            Reason.NATIVE_CRASH, f"its process was ended by {signal.Signals(-code).name}"
        )
    return ChildExit(Reason.NATIVE_CRASH, f"its process ended itself with exit code {code}")


def serve(descriptor: int, parent: int) -> None:
    """Run the child: receive and open the work, then work on rows as they come."""
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
        except Exception as error:  # noqa: BLE001  # the parent raises it
            pipe.send(PipelineError(describe_user_error(error)))


def _telling(pipe: Connection) -> Callable[[int, int], None]:
    """Return a function that tells the parent, at intervals, that this thread gets on."""
    answering_thread, sent_s = threading.get_ident(), monotonic()

    def tell(_num_rows: int, _num_tokens: int) -> None:
        nonlocal sent_s
        # Steps of other threads are not progress of the thread that answers.
        if threading.get_ident() == answering_thread and monotonic() - sent_s >= _TELL_S:
            sent_s = monotonic()
            pipe.send(_Alive())

    return tell


def _to_bytes(rows: pa.Table) -> bytes:
    # Pickling a slice of a table would include the whole table.
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
