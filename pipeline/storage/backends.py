"""The backend of a store: local disk or objects, with injected faults if `pipeline chaos` asks.

The one place that looks at PIPELINE_CHAOS. Without it, no code of the fault injection is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from pipeline.storage.interface import CHAOS_VARIABLE, Backend, Disk
from pipeline.storage.local_disk import LocalDisk
from pipeline.storage.object_store import ObjectStore
from pipeline.storage.uris import options_of

B = TypeVar("B", bound=Backend)


def disk_backend(root: str) -> Disk:
    """Return how to reach the store at `root` on local disk.

    Raises:
        JobError: PIPELINE_CHAOS names no scratch folder of `pipeline chaos`.
    """
    return _with_faults(LocalDisk(), root)


def object_backend(uri: str, storage_options: Mapping[str, Any]) -> Backend:
    """Return how to reach the object store at `uri`, without its listing; raises as the other."""
    return _with_faults(object_store(uri, storage_options), uri)


def object_store(uri: str, storage_options: Mapping[str, Any]) -> ObjectStore:
    """Return the object store at `uri`; options in the URI give way to those of the job."""
    protocol = uri.partition("://")[0]
    return ObjectStore.connect(protocol, {**options_of(uri), **storage_options})


def _with_faults(backend: B, root: str) -> B:
    folder = os.environ.get(CHAOS_VARIABLE)
    if folder is None:
        return backend
    from pipeline.storage.fault_injection import inject_faults

    return inject_faults(backend, root, folder)
