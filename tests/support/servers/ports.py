"""Choose free ports for servers that need to know theirs before they start."""

from __future__ import annotations

import contextlib
import random
import socket

_RANGE = range(20000, 32768)
"""Below the kernel's own (32768 to 60999), out of which any outgoing connection may take the port
before its server does, and above that of Ray's workers."""


def free_ports(count: int) -> list[int]:
    """Return different ports that no process holds."""
    ports: list[int] = []
    with contextlib.ExitStack() as held:
        # Not of the generator that a test may have seeded: two processes would try the same ports.
        for port in random.SystemRandom().sample(_RANGE, len(_RANGE)):
            if len(ports) == count:
                return ports
            one = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                one.bind(("127.0.0.1", port))
                ports.append(port)
    raise OSError(f"fewer than {count} ports are free")
