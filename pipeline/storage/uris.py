"""URIs of stores: their normal form, the path for file systems, and the options in them."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import JobError
from pipeline.storage.protocols import OBJECT_PROTOCOLS

_AZURE = ("az", "abfs", "abfss")
# The form of Spark and Hadoop has the container in the place of a user.
_AZURE_HOST = re.compile(r"([a-z0-9$-]+)@([a-z0-9]+)\.(?:dfs|blob)\.([a-z0-9.-]+)")


def normalise(uri: str) -> str:
    """Return the normal form of a URI or local path.

    Raises:
        JobError: It is neither a local path nor a URI of a known store.
    """
    protocol, separator, rest = uri.partition("://")
    if not separator:
        if re.match(rf"({'|'.join(OBJECT_PROTOCOLS)}|file):/", uri):
            raise JobError(f"{uri}: not a URI; expected two slashes, as in s3://bucket/prefix")
        return os.path.abspath(os.path.expanduser(uri))
    if protocol == "file":
        if not rest.startswith("/"):
            raise JobError(f"{uri}: expected three slashes, as in file:///folder")
        return os.path.abspath(rest)
    if protocol not in OBJECT_PROTOCOLS:
        known = ", ".join(f"{name}://" for name in OBJECT_PROTOCOLS)
        raise JobError(f"{protocol}://: not supported; expected a local path or {known}")
    host = rest.split("/", 1)[0]
    if "@" in host and not (protocol in _AZURE and _AZURE_HOST.fullmatch(host)):
        raise JobError(
            f"{protocol}://: credentials do not belong in a URI; use storage_options or the "
            "environment"
        )
    rest = rest.strip("/")
    if not rest or {".", ".."} & set(rest.split("/")):
        raise JobError(f"{uri}: expected {protocol}://bucket/prefix without '.' and '..'")
    if why := trouble(f"{protocol}://{rest}"):
        raise JobError(f"{uri}: {why}")
    return f"{protocol}://{rest}"


def trouble(uri: str) -> str:
    """Return what would be right, if the object store of a URI does not have such ones; else ''."""
    protocol, _, path = uri.partition("://")
    return OBJECT_PROTOCOLS[protocol].trouble(path)


@functools.lru_cache(256)
def unpinned(uri: str) -> str:
    """Return a normal URI without a revision in it."""
    protocol, separator, path = uri.partition("://")
    return f"{protocol}://{OBJECT_PROTOCOLS[protocol].unpinned(path)}" if separator else uri


def join(root: str, path: str) -> str:
    """Return the path or URI of a file below a root."""
    return f"{root.rstrip('/')}/{path}".rstrip("/") or "/"


def root_path(uri: str) -> str:
    """Return the path of a normal URI for file systems: `bucket/prefix`, or a local path."""
    _, separator, rest = uri.partition("://")
    if not separator:
        return uri
    host, slash, prefix = rest.partition("/")
    return host.split("@")[0] + slash + prefix


def options_of(uri: str) -> Mapping[str, Any]:
    """Return the storage options in a normal URI: the account of `abfs://C@ACCOUNT...`."""
    match = _AZURE_HOST.match(uri.partition("://")[2])
    if match is None:
        return {}
    _, account, cloud = match.groups()
    return {"account_name": account, "account_host": f"{account}.blob.{cloud}"}
