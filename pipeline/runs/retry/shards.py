"""The shards of a retry as they are now: as they were planned, or mended since."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from pipeline.sources.extents import Extent
from pipeline.storage.store import Store, StoredFile

_STAT_THREADS = 16


def look_up(
    inputs: Store, extents: Iterable[Extent], may_change: Callable[[Extent], bool]
) -> dict[str, StoredFile]:
    """Return the shards that are there, as they were planned or of which nothing was predicted."""
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        found = pool.map(lambda extent: (extent, inputs.stat(extent.path)), extents)
        return {e.path: f for e, f in found if f and (_is_as_planned(e, f) or may_change(e))}


def as_found(extent: Extent, file: StoredFile) -> Extent:
    """Return the extent of a shard as it is now; its ctime tells a change while it is read."""
    extent = replace(extent, ctime_ns=file.ctime_ns)
    if _is_as_planned(extent, file):
        return extent
    row_bytes = file.size_bytes / extent.num_rows if extent.num_rows else extent.row_bytes
    return replace(extent, size_bytes=file.size_bytes, version=file.version, row_bytes=row_bytes)


def _is_as_planned(extent: Extent, file: StoredFile) -> bool:
    return (file.size_bytes, file.version) == (extent.size_bytes, extent.version)
