"""Refuse a sink that is a file, or whose files the source would list in the next run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.output_folders import OUTPUT_FOLDERS
from pipeline.job.source import Source
from pipeline.sources.listing.inputs import named_files, open_source, reaches_below
from pipeline.storage.store import Store
from pipeline.storage.uris import options_of, root_path


def require_disjoint(source: Source, sink: Store) -> None:
    """Check that no file of the sink is, or could become, input.

    A sink beside the source or above it is fine, as long as its own folders are not input.

    Raises:
        JobError: A file of the sink would be input, or the sink is a file or read-only.
    """
    if sink.is_read_only:
        raise JobError(
            f"sink.uri = {sink.uri}: nothing can be written there; give a folder or s3://"
        )
    if not sink.is_object_store and os.path.isfile(root_path(sink.uri)):
        raise JobError(f"sink.uri = {sink.uri} is a file; give a folder")
    root, pattern = open_source(source)
    if not _are_alike(root, sink):
        return
    here, there = _segments(root), _segments(sink)
    names = None if source.files is None else named_files(source)
    for folder in OUTPUT_FOLDERS:
        path = [*there, folder]
        if here[: len(path)] == path:  # the source is a folder of the sink, or lies in one
            meets = True
        elif path[: len(here)] != here:
            meets = False
        elif names is not None:
            below = "/".join(path[len(here) :])
            meets = any(name.startswith(f"{below}/") for name in names)
        else:
            meets = reaches_below(pattern or "**", path[len(here) :])
        if meets:
            raise JobError(
                f"sink.uri = {sink.url('')}: its {folder}/ is inside the input of source.uri = "
                f"{source.uri}, so a run would read earlier output; use a folder outside of it"
            )


def _are_alike(one: Store, other: Store) -> bool:
    """Tell whether two stores are both on local disk, or on the same service."""
    if not one.is_object_store or not other.is_object_store:
        return one.is_object_store == other.is_object_store
    providers = [_provider(store.uri) for store in (one, other)]
    services = [_service(store) for store in (one, other)]
    return providers[0] == providers[1] and (services[0] == services[1] or None in services)


def _provider(uri: str) -> str:
    protocol = uri.partition("://")[0]
    return "az" if protocol.startswith("abfs") else protocol


def _service(store: Store) -> str | None:
    """Return the endpoint or account that the options name; None if they name none."""
    options: Mapping[str, Any] = {**options_of(store.uri), **store.storage_options}
    inner = options.get("client_kwargs") or {}
    named = options.get("endpoint_url") or options.get("account_name") or inner.get("endpoint_url")
    return None if named is None else str(named).rstrip("/")


def _segments(store: Store) -> Sequence[str]:
    path = root_path(store.uri)
    path = path if store.is_object_store else os.path.realpath(path)
    return [segment for segment in path.split("/") if segment]
