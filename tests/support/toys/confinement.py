"""Attempts of a confined child process; each function is called in one."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import pickle
import runpy
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any


def server() -> int:
    """Return the process that forked this one."""
    return os.getppid()


def add(first: int, second: int) -> int:
    return first + second


def works(path: str) -> Any:
    """Do what libraries do: read the files and packages, write apart, import, use threads."""
    with tempfile.NamedTemporaryFile("w+") as file:
        file.write(Path(path).read_text())
        file.seek(0)
        content = file.read()
    import json.tool  # reads a file of the installation
    import wave  # noqa: F401

    thread = threading.Thread(target=json.tool.__doc__.upper)
    thread.start()
    thread.join()
    return [content, *sorted({"HOME", "SECRET_KEY"} & os.environ.keys())]


def read(path: str) -> str:
    return Path(path).read_bytes()[:20].decode("latin-1")


def list_folder(path: str) -> list[str]:
    return os.listdir(path)


def write(path: str) -> None:
    Path(path).write_text("written")


def remove(path: str) -> None:
    Path(path).unlink()


def link(path: str, target: str) -> None:
    os.link(path, target)


def read_natively(path: str) -> str:
    """Open a file without Python."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.open(path.encode(), os.O_RDONLY) < 0:
        raise PermissionError(os.strerror(ctypes.get_errno()))
    return "opened"


def run_natively(program: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.execv(program.encode(), None)
    raise PermissionError(os.strerror(ctypes.get_errno()))


def connect_natively(port: int) -> str:
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    address = struct.pack("=H", socket.AF_INET) + struct.pack(">H", port)
    address += socket.inet_aton("127.0.0.1") + bytes(8)
    if libc.connect(libc.socket(socket.AF_INET, socket.SOCK_STREAM, 0), address, len(address)):
        raise PermissionError(os.strerror(ctypes.get_errno()))
    return "connected"


def connect(port: int) -> None:
    socket.create_connection(("127.0.0.1", port))


def send(port: int) -> None:
    socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", port))


def look_up() -> None:
    socket.getaddrinfo("localhost", 80)


def start() -> None:
    subprocess.run(["/bin/true"], check=True)


def shell() -> None:
    os.system("true")


def fork() -> None:
    if not os.fork():
        os._exit(0)


def kill(process: int) -> None:
    os.kill(process, 0)


def database(path: str) -> None:
    sqlite3.connect(path).execute("select 1")


def import_file(path: str) -> None:
    spec = importlib.util.spec_from_file_location("own", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def run_file(path: str) -> None:
    runpy.run_path(path)


def load_library(path: str) -> None:
    ctypes.CDLL(path)


def unpickle(data: str) -> None:
    pickle.loads(bytes.fromhex(data))


def allocate(num_bytes: int) -> int:
    return len(bytearray(num_bytes))


def never_end() -> None:
    while True:
        pass


def reply(num_chars: int) -> str:
    return "x" * num_chars


def crash() -> None:
    os.abort()


def leave() -> None:
    sys.exit(3)


def refuse() -> None:
    from pipeline.core.errors import JobError

    raise JobError("model.path: refused")


def no_json() -> Any:
    return {1, 2}
