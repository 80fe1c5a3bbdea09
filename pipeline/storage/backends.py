"""The object store at a URI, by its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.storage.object_store import ObjectStore
from pipeline.storage.uris import options_of


def object_store(uri: str, storage_options: Mapping[str, Any]) -> ObjectStore:
    """Return the object store at `uri`; options in the URI give way to those of the job."""
    protocol = uri.partition("://")[0]
    return ObjectStore.connect(protocol, {**options_of(uri), **storage_options})
