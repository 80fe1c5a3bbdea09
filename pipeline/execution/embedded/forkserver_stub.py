"""A program in place of a worker that a raylet starts: it asks for a forked one.

A raylet runs it, with nothing but Python's own modules: `forkserver_stub.py NAME PROGRAM
ARGUMENT...`. If no server answers, or the worker needs its own environment, this process becomes
the program itself.
"""

import json
import os
import signal
import socket
import struct
import sys

SIZE_BYTES = 4
NUM_STREAMS = 3
FORKED = b"1"
OOM_SCORE = "/proc/self/oom_score_adj"
_ENVIRONMENT_HASH = "--runtime-env-hash="
_PEER = struct.Struct("3i")


def main() -> None:
    """Let the server that listens as NAME fork the program, or become the program."""
    name, *program = sys.argv[1:]
    hashes = [argument for argument in program if argument.startswith(_ENVIRONMENT_HASH)]
    if any(argument != f"{_ENVIRONMENT_HASH}0" for argument in hashes) or not _is_forked(
        name, program
    ):
        os.execv(sys.executable, [sys.executable, *program])  # noqa: S606  # as Ray starts it


def address(name: str) -> str:
    """Return the address of an abstract Unix socket, which needs no file."""
    return "\0" + name


def is_ours(connection: socket.socket) -> bool:
    """Tell whether the process at the other end belongs to the same user."""
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    return bool(_PEER.unpack(option)[1] == os.getuid())


def _is_forked(name: str, program: list[str]) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(address(name))
            if not is_ours(connection):
                return False
            content = json.dumps(_request(program)).encode()
            socket.send_fds(connection, [len(content).to_bytes(SIZE_BYTES)], range(NUM_STREAMS))
            connection.sendall(content)
            return connection.recv(1) == FORKED
    except OSError:
        return False


def _request(program: list[str]) -> dict[str, object]:
    """Return the properties that a worker would have from this process."""
    with open(OOM_SCORE) as file:
        oom_score = file.read()
    return {
        "program": program,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
        "oom_score": oom_score,
    }


if __name__ == "__main__":
    main()
