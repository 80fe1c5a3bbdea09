"""Read the figures of earlier partitions: those of the same key with an earlier date or number.

Only partitions with an order have earlier ones: `date=2026-11-24` and `hour=7` do, `region=eu` does
not. One manifest per partition is read, which has all figures.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pipeline.commit.layout import Layout, earlier_names
from pipeline.commit.manifest import Manifest, NotAManifest, current_manifest
from pipeline.core.errors import JobError
from pipeline.core.histograms import Distribution
from pipeline.core.output_folders import CONTROL
from pipeline.storage.store import Store

log = logging.getLogger(__name__)

NOTHING_EARLIER = "there is nothing earlier to compare with; this partition is recorded"
_LOOKED_AT = 32
_THREADS = 8


@dataclass(frozen=True)
class Past:
    """Figures that were published before."""

    rows: tuple[int, ...] = ()
    """Rows of the earlier partitions, the newest first."""
    distribution: Distribution = field(default_factory=Distribution)
    """Of the last earlier partition that has one, otherwise of the replaced version."""
    basis: str = ""
    """The name of that partition or version; '' if there is none."""


def _current_or_none(store: Store, layout: Layout) -> Manifest | None:
    try:
        return current_manifest(store, layout)
    except (NotAManifest, JobError) as error:
        log.warning("earlier partition %s is skipped: %s", layout.name, error)
        return None


def look_back(store: Store, layout: Layout, base: Manifest | None, num_partitions: int) -> Past:
    """Return the figures of the last partitions before this one.

    A partition whose manifest is damaged, or written by a newer version of the package, is skipped
    with a warning.

    Args:
        layout: The partition to be published.
        base: Its published version.
        num_partitions: The number of partitions in `rows`.

    Raises:
        PipelineError: The store failed.
    """
    names = earlier_names(layout.name, store.list_folders(CONTROL))[:_LOOKED_AT]
    with ThreadPoolExecutor(_THREADS) as pool:
        manifests = pool.map(partial(_current_or_none, store), map(Layout, names))
        published = [manifest for manifest in manifests if manifest is not None]
    last = published[:num_partitions]
    candidates = [(manifest, manifest.partition) for manifest in last]
    if base is not None:
        candidates.append((base, f"version {base.number}"))
    rows = tuple(manifest.num_rows for manifest in last)
    for manifest, basis in candidates:
        if manifest.distribution:
            return Past(rows, Distribution.from_dict(manifest.distribution), basis)
    return Past(rows)
