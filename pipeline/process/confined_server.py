"""The program that forks a confined child for each call; see `confined.py`.

A child has no network, starts no process, runs no code of the files that it reads, reads those
files and the installed packages alone, writes into a temporary folder of its own, and has limits of
processor time, wall-clock time and memory. Python's audit hooks hold that for what goes through
Python; they are the second fence behind files and settings that name no code.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pipeline
from pipeline.core.errors import PipelineError
from pipeline.process.confined import Call

_MOST_REPLY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16
_REFUSED = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"),
        *("pickle.find_class", "pty.spawn", "socket.bind", "socket.connect", "socket.getaddrinfo"),
        *("socket.gethostbyaddr", "socket.gethostbyname", "socket.sendmsg", "socket.sendto"),
        "subprocess.Popen",
    )
)
"""Audit events that a child may not cause."""
_CHANGES = frozenset(
    (
        *("os.chmod", "os.chown", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir"),
        *("os.symlink", "os.truncate", "shutil.move", "shutil.rmtree"),
    )
)
"""Audit events that change files; a child may cause them in its own folder."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SYSTEM = (
    *("/dev/null", "/dev/urandom", "/dev/random", "/dev/shm", "/etc/ld.so.cache"),  # noqa: S108
    *("/etc/localtime", "/etc/mime.types", "/lib", "/lib64", "/proc", "/sys", "/usr"),
)
"""What libraries read of a system."""


def main() -> None:
    """Answer calls until the caller has gone."""
    pipe = Connection(int(sys.argv[1]))
    while True:
        try:
            call = pipe.recv()
        except (EOFError, OSError):
            return
        for name in call.imports:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        pipe.send_bytes(_reply(call, pipe))


def _reply(call: Call, pipe: Connection) -> bytes:
    folder = tempfile.mkdtemp(prefix="pipeline-")
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        pipe.close()
        _serve(call, folder, sink)
    os.close(sink)
    try:
        return _read_reply(source, pipe, time.monotonic() + 2 * call.cpu_s, child)
    finally:
        os.close(source)
        shutil.rmtree(folder, ignore_errors=True)


def _read_reply(source: int, pipe: Connection, until_s: float, child: int) -> bytes:
    """Return the reply of a child, which has ended then."""
    reply, reason = bytearray(), ""
    waiting: list[Any] = [source, pipe]
    while not reason:
        left_s = until_s - time.monotonic()
        ready, _, _ = select.select(waiting, [], [], max(0.0, left_s))
        if pipe in ready:  # nothing is due from the caller: it has gone
            os.kill(child, signal.SIGKILL)
            os._exit(0)
        if not ready:
            reason = "it takes too long"
        elif not (chunk := os.read(source, _CHUNK_BYTES)):
            break
        else:
            reply += chunk
            if len(reply) > _MOST_REPLY_BYTES:
                reason = "it writes too much"
    if reason:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and not reason:
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name
        slow = number in (signal.SIGXCPU, signal.SIGKILL)
        reason = "it takes too long, or too much memory" if slow else f"its process died of {name}"
    return json.dumps({"error": ("", reason)}).encode() if reason else bytes(reply)


def _serve(call: Call, folder: str, sink: int) -> None:
    """Make the call in this process, which ends with it."""
    reply: dict[str, Any]
    try:
        function = _prepared(call, folder)
        reply = {"value": function(*call.arguments)}
        data = json.dumps(reply).encode()
    except BaseException as error:  # noqa: BLE001  # also a panic of Rust code, or SystemExit
        is_own = isinstance(error, PipelineError)
        name = type(error).__name__
        data = json.dumps(
            {"error": (name, str(error)) if is_own else ("", f"{name}: {error}")}
        ).encode()
    with contextlib.suppress(OSError), open(sink, "wb") as file:
        file.write(data)
    os._exit(0)


def _prepared(call: Call, folder: str) -> Callable[..., Any]:
    """Return the function of a call, with this process confined."""
    os.environ.update(
        HF_HOME=f"{folder}/hub", HOME=folder, TMPDIR=folder, XDG_CACHE_HOME=f"{folder}/cache"
    )
    tempfile.tempdir = folder
    os.chdir(folder)
    module, _, name = call.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (call.cpu_s, call.cpu_s))
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most_bytes = used_bytes + call.memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    sys.addaudithook(_Fence(call, folder))
    return function


class _Fence:
    """An audit hook that raises PermissionError for what a child may not do."""

    def __init__(self, call: Call, folder: str) -> None:
        installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")}
        installed |= {sys.prefix, sys.base_prefix, *filter(None, sys.path), *pipeline.__path__}
        self._inside = (os.path.realpath(folder),)
        self._foreign = (*map(os.path.realpath, call.reads), *self._inside)
        self._readable = (*map(os.path.realpath, (*installed, *_SYSTEM)), *self._foreign)
        self._writable = (*self._inside, "/dev/null", "/dev/shm")  # noqa: S108

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._open(*arguments)
        elif event == "exec":
            self._exec(arguments[0].co_filename)
        elif event in _REFUSED:
            _refuse(event, arguments[:2])
        elif event in _CHANGES:
            # What a link leads to is checked when it is opened.
            for path in arguments[1:2] if event == "os.symlink" else arguments[:2]:
                if isinstance(path, str | bytes) and not _is_below(path, self._inside):
                    _refuse(event, path)

    def _open(self, path: Any, mode: Any, flags: int | None) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor of a file that was opened
        writes = bool((flags or 0) & _WRITES)
        if not _is_below(path, self._writable if writes else self._readable):
            _refuse("writing" if writes else "reading", path)

    def _exec(self, name: str) -> None:
        # Code without a file is made by libraries, such as dataclasses.
        if os.path.isabs(name) and _is_below(name, self._foreign):
            _refuse("running code", name)


def _is_below(path: Any, folders: Sequence[str]) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(f"{folder}/") for folder in folders)


def _refuse(event: str, what: Any) -> NoReturn:
    raise PermissionError(f"{event} of {what!r:.200} is not allowed over a model directory")


if __name__ == "__main__":
    main()
