"""The backend of a store: local disk or objects, wrapped if the environment names a wrapper."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any, TypeVar, cast

from pipeline.core.environment import STORE_WRAPPER
from pipeline.core.errors import JobError
from pipeline.storage.interface import Backend, Disk
from pipeline.storage.local_disk import LocalDisk
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.uris import options_of

B = TypeVar("B", bound=Backend)


def disk_backend(root: str) -> Disk:
    """Return how to reach the store at `root` on local disk.

    Raises:
        JobError: The environment names a wrapper that is none, or that refuses.
    """
    return _wrapped(LocalDisk(), root)


def object_backend(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Return how to reach the object store at `uri`, without its listing; raises as the other."""
    return _wrapped(object_store(uri, storage_options), uri)


def object_store(uri: str, storage_options: Mapping[str, Any]) -> ObjectStore:
    """Return the object store at `uri`; options in the URI give way to those of the job."""
    protocol = uri.partition("://")[0]
    return ObjectStore.connect(protocol, {**options_of(uri), **storage_options})


def _wrapped(backend: B, root: str) -> B:
    named = os.environ.get(STORE_WRAPPER)
    if named is None:
        return backend
    module, _, rest = named.partition(":")
    name, _, argument = rest.partition(":")
    try:
        wrap = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise JobError(f"{STORE_WRAPPER}={named}: {error}; unset it") from None
    return cast(B, wrap(backend, root, argument))
