"""Ray's authentication token: sent to the cluster that it is for, private on this disk."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path


def auth_mode(environment: Mapping[str, str]) -> str:
    """Return what RAY_AUTH_MODE says, `token` or `disabled`; '' where it says nothing."""
    return environment.get("RAY_AUTH_MODE", "").strip().lower()


def has_token(environment: Mapping[str, str]) -> bool:
    """Tell whether the environment brings a token for a cluster."""
    return bool(environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"))


def token_file(environment: Mapping[str, str]) -> Path:
    """Return the file from which Ray takes its token where no variable holds it."""
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    return Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"


def send_token() -> bool:
    """Turn Ray's token authentication on where the environment has a token for the cluster.

    Not for the token in the home folder: that one is this machine's, and Ray itself sends it to
    no cluster that is named by its address.

    Returns:
        Whether requests to the cluster carry a token.
    """
    if has_token(os.environ):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return auth_mode(os.environ) == "token"


def authorization() -> dict[str, str]:
    """Return the header that carries the token, as it is now; {} where none is to be sent.

    Ray reads a token once in a process; one that expires is replaced in its file meanwhile.
    """
    if auth_mode(os.environ) != "token":
        return {}
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    with contextlib.suppress(OSError):  # Ray says itself that there is none
        token = token or token_file(os.environ).read_text()
    return {"Authorization": f"Bearer {token.strip()}"} if token.strip() else {}


def refused_token(where: str) -> str:
    """Say that a cluster refuses the token that was sent, or wants one, and what to set.

    Args:
        where: The cluster, as the message begins.
    """
    head = "set RAY_AUTH_TOKEN to that of its head"
    if auth_mode(os.environ) != "token":
        return f"{where}: the cluster wants a token: {head} (and RAY_AUTH_MODE=token for ray start)"
    sent = "RAY_AUTH_TOKEN, of RAY_AUTH_TOKEN_PATH or in ~/.ray/auth_token"
    return f"{where}: the cluster wants another token than that of {sent}: {head}"


def make_private_token() -> None:
    """Make the token of an embedded Ray before Ray does, which would let everybody read it.

    One that is there and ours becomes private: who reads it can run code as we do.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or auth_mode(os.environ) == "disabled":
        return
    path = token_file(os.environ)
    with contextlib.suppress(OSError):  # Ray meets the same trouble, and says so
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            if is_open_to_others(path) and path.stat().st_uid == os.getuid():
                path.chmod(0o600)
            return
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))


def is_open_to_others(path: Path) -> bool:
    """Tell whether others than the owner may read or write a file."""
    return bool(path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
