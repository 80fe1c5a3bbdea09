"""Let the kernel hold what this process reads, writes, runs and connects to, where it can.

Landlock, of Linux since 5.13, needs no privilege, binds native code as well as Python's, and cannot
be undone. Kernels and containers without it are left as they are.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from collections.abc import Sequence

# Numbers and names are those of linux/landlock.h; they are the same for all processors.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_RULESET_VERSION = 1
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE = 1 << 1 | _READ_FILE
"""Rights that a file can have: to be written and read."""
_FILESYSTEM = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1}
"""Version -> rights over files that it knows: to run, write, read, make, remove, ..."""
_TCP = 0b11
"""To bind and to connect; since version 4."""
_SCOPES = 0b11
"""Other processes' abstract Unix sockets, and signals to them; since version 6."""
_RUN = 1


def restrict(readable: Sequence[str], writable: Sequence[str]) -> bool:
    """Restrict this process to read and write below some paths, run no program and connect nowhere.

    Args:
        readable: Files and folders; what is not there is left out.
        writable: Likewise; they are readable, too.

    Returns:
        Whether the kernel holds it.
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
