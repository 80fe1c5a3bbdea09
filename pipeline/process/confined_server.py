"""The program that forks a confined child for each call of `confined.py`.

A child has no network, starts no process, and runs no code of the files that it reads. It reads
those files and the installed packages alone, writes into a temporary folder of its own, and has
limits of processor time, wall-clock time and memory. Python's audit hooks enforce this for what
goes through Python, and name what was refused. For native code Landlock of Linux (5.13 or newer)
enforces it: that needs no privilege and cannot be undone; kernels and containers without it are
left as they are. Both guard files and settings that name no code.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.machinery import all_suffixes
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NoReturn

import pipeline
from pipeline.core.errors import PipelineError
from pipeline.process.confined import Call
from pipeline.process.parent_death import die_with

# Numbers and names are those of linux/landlock.h; they are the same for all processors.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE = 1 << 1 | _READ_FILE
"""Rights of a file: write and read."""
_FILESYSTEM = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""Version -> known rights over files: run, write, read, make, remove, ..."""
_TCP = 0b11
"""Bind and connect; since version 4."""
_SCOPES = 0b11
"""Other processes' abstract Unix sockets, and signals to them; since version 6."""
_RUN = 1


def restrict(readable: Sequence[str], writable: Sequence[str]) -> bool:
    """Restrict this process by the kernel: reading and writing below paths, no program, no network.

    Args:
        readable: Files and folders; missing ones are skipped.
        writable: Files and folders that are readable, too; missing ones are skipped.

    Returns:
        Whether the kernel enforces it.
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, 0, _RULESET_VERSION)
    if version < 1:
        return False
    rights = _FILESYSTEM[min(version, 3)]
    attributes = struct.pack(
        "QQQ", rights, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0
    )
    rules = libc.syscall(_CREATE_RULESET, attributes, len(attributes), 0)
    if rules < 0:
        return False
    try:
        for paths, allowed in (
            (readable, _READ_FILE | _READ_DIR),
            (writable, rights & ~_RUN),
        ):
            for path in paths:
                _allow(libc, rules, path, allowed)
        failed = libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.syscall(_RESTRICT_SELF, rules, 0)
        return not failed
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str, allowed: int) -> None:
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)  # stays open, which keeps folders of /proc
    except OSError:
        return
    allowed = allowed if os.path.isdir(path) else allowed & _FILE
    libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, struct.pack("=Qi", allowed, place), 0)


_MOST_REPLY_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 16
_GRACE_S = 5
"""Time from the limit of processor time, which sends a signal, to the unconditional end."""
_REFUSED = frozenset(
    (
        *("os.exec", "os.fork", "os.forkpty", "os.kill", "os.killpg", "os.posix_spawn"),
        *("os.spawn", "os.system", "pickle.find_class", "pty.spawn", "socket.bind"),
        *("socket.connect", "socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname"),
        *("socket.sendmsg", "socket.sendto", "sqlite3.connect", "subprocess.Popen"),
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
_LISTS = frozenset(("os.listdir", "os.scandir"))
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_SYSTEM = (
    *("/dev/null", "/dev/urandom", "/dev/random", "/etc/ld.so.cache", "/etc/localtime"),
    *("/etc/mime.types", "/lib", "/lib64", "/sys", "/System", "/usr"),
)
"""Files of the system that libraries read."""
_MACHINE = ("cpuinfo", "filesystems", "meminfo", "self", "stat", "sys", "version")
"""Files in /proc that libraries read; none belongs to another process."""
_CODE = (*all_suffixes(),)
_PACKAGES = ("dist-packages", "site-packages")
refused: list[str] = []
"""What this child was refused; a library may hide a refusal from its caller."""


def main() -> None:
    """Answer calls until all callers have ended."""
    control = socket.socket(fileno=int(sys.argv[1]))
    warm: set[str] = set()
    gc.disable()
    while True:
        _, connections, _, _ = socket.recv_fds(control, 1, 1)
        if not connections:
            return
        with Connection(connections[0]) as caller, contextlib.suppress(EOFError, OSError):
            call = caller.recv()
            _warm_up(call, warm)
            caller.send_bytes(_reply(call, caller, control))


def _warm_up(call: Call, warm: set[str]) -> None:
    """Import the modules that calls need, so that each child has them."""
    for name in (*call.imports, call.function.partition(":")[0]):
        if name not in warm:
            module, _, function = name.partition(":")
            with contextlib.suppress(ImportError):
                imported = importlib.import_module(module)
                if function:
                    getattr(imported, function)()
            warm.add(name)
    gc.freeze()  # a child that collects garbage copies no pages of it


def _reply(call: Call, caller: Connection, control: socket.socket) -> bytes:
    try:
        folder = tempfile.mkdtemp(prefix="pipeline-")
    except OSError as error:
        return _error("InfraError", f"cannot make a temporary folder: {error}")
    source, sink = os.pipe()
    try:
        child = os.fork()
        if not child:
            for other in (source, caller.fileno(), control.fileno()):
                os.close(other)
            _serve(call, folder, sink)
        os.close(sink)
        return _read_reply(source, caller, time.monotonic() + 2 * call.cpu_s, child)
    except OSError as error:  # of fork
        os.close(sink)
        return _error("InfraError", f"cannot start a process to read the model: {error}")
    finally:
        os.close(source)
        shutil.rmtree(folder, ignore_errors=True)


def _read_reply(source: int, caller: Connection, until_s: float, child: int) -> bytes:
    """Return the reply of a child, after the child has ended."""
    reply, reason = bytearray(), ""
    waiting: list[Any] = [source, caller]
    while not reason:
        left_s = until_s - time.monotonic()
        ready, _, _ = select.select(waiting, [], [], max(0.0, left_s))
        if caller in ready:  # the caller sends nothing more, so it has ended
            reason = "its caller has ended"
        elif not ready:
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
        ended_by = signal.Signals(os.WTERMSIG(status))
        reason = _ENDED_BY.get(ended_by, f"its process died of {ended_by.name}")
    return _error("", reason) if reason else bytes(reply)


_ENDED_BY = {
    signal.SIGXCPU: "it takes too long",
    signal.SIGKILL: "the system ended its process: it takes too much memory",
}


def _error(name: str, message: str) -> bytes:
    return json.dumps({"error": (name, message)}).encode()


def _serve(call: Call, folder: str, sink: int) -> None:
    """Make the call in this process, then end the process."""
    try:
        gc.enable()
        function, arguments = _prepared(call, folder)
        data = json.dumps({"value": function(*arguments)}).encode()
    except PipelineError as error:
        data = _error(type(error).__name__, str(error))
    except BaseException as error:  # noqa: BLE001  # also a panic of Rust code, or SystemExit
        hidden = f"; {refused[0]}" if refused and refused[0] not in str(error) else ""
        data = _error("", f"{type(error).__name__}: {error}{hidden}")
    with contextlib.suppress(OSError), open(sink, "wb") as file:
        file.write(data)
    os._exit(0)


def _prepared(call: Call, folder: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Confine this process; return the function of a call and its arguments."""
    die_with(os.getppid())
    os.environ.update(
        HF_HOME=f"{folder}/hub", HOME=folder, TMPDIR=folder, XDG_CACHE_HOME=f"{folder}/cache"
    )
    tempfile.tempdir, sys.dont_write_bytecode = folder, True
    os.chdir(folder)
    module, _, name = call.function.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    arguments = ForkingPickler.loads(call.arguments)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, call.cpu_s, _GRACE_S)
    if sys.platform == "linux":  # others know no such limit
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + call.memory_bytes)
    fence = _Fence(call, folder)
    restrict((*fence.readable, *fence.code), fence.writable)
    sys.addaudithook(fence)
    return function, arguments


def _limit(what: int, most: int, grace: int = 0) -> None:
    """Set a limit of this process, within its existing limit."""
    _, hard = resource.getrlimit(what)
    if hard == resource.RLIM_INFINITY:
        hard = most + grace
    resource.setrlimit(what, (min(most, hard), min(most + grace, hard)))


class _Fence:
    """An audit hook that raises PermissionError for what a child may not do."""

    def __init__(self, call: Call, folder: str) -> None:
        paths = [os.path.realpath(path) for path in sys.path if path]
        installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib")}
        installed |= {sys.prefix, sys.base_prefix, *pipeline.__path__}
        installed |= {path for path in paths if os.path.basename(path) in _PACKAGES}
        machine = (f"/proc/{name}" for name in _MACHINE)
        self.inside = (os.path.realpath(folder),)
        self.foreign = (*map(os.path.realpath, call.reads), *self.inside)
        self.readable = (*map(os.path.realpath, (*installed, *_SYSTEM, *machine)), *self.foreign)
        self.code = (*(path for path in paths if not _is_below(path, self.readable)),)
        """Other folders that modules are imported from, such as a home; only code is readable."""
        self.writable = (*self.inside, "/dev/null")

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            self._open(*arguments)
        elif event in ("exec", "import", "ctypes.dlopen"):
            self._run(event, arguments)
        elif event in _REFUSED:
            _refuse(event, arguments[:2])
        elif event in _LISTS:
            if isinstance(arguments[0], str | bytes) and not _is_below(
                arguments[0], (*self.readable, *self.code)
            ):
                _refuse("listing", arguments[0])
        elif event in _CHANGES:
            # The target of a link is checked when it is opened.
            for path in arguments[1:2] if event == "os.symlink" else arguments[:2]:
                if isinstance(path, str | bytes) and not _is_below(path, self.inside):
                    _refuse(event, path)

    def _open(self, path: Any, mode: Any, flags: int | None) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return  # a descriptor of a file that was opened
        writes = bool((flags or 0) & _WRITES)
        is_code = not writes and os.fsdecode(path).endswith(_CODE)
        may = self.writable if writes else self.readable
        if not _is_below(path, may) and not (is_code and _is_below(path, self.code)):
            _refuse("writing" if writes else "reading", path)

    def _run(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "exec":
            name = arguments[0].co_filename
        else:
            name = arguments[1] if event == "import" else arguments[0]
        # Libraries such as dataclasses make code without a file.
        if isinstance(name, str) and os.sep in name and _is_below(name, self.foreign):
            _refuse("running code", name)


def _is_below(path: Any, folders: Sequence[str]) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    return any(real == folder or real.startswith(f"{folder}/") for folder in folders)


def _refuse(event: str, what: Any) -> NoReturn:
    refused.append(f"{event} of {what!r:.200} is not allowed over a model directory")
    raise PermissionError(refused[-1])


if __name__ == "__main__":
    main()
