"""Find what earlier nights published: partitions of the same key with an earlier date or number.

Only partitions that have an order are nights of one dataset: `date=2026-11-24` and `hour=7` do,
`region=eu` does not. One manifest a night is read, and it holds all that is compared.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from pipeline.histograms import Distribution
from pipeline.layout import Layout
from pipeline.manifest import Manifest, current_manifest
from pipeline.storage import Store

_ORDERED = re.compile(r"\d[\d:._TZ-]*")
_LOOKED_AT = 32
_THREADS = 8


@dataclass(frozen=True)
class Past:
    """What was published before."""

    rows: tuple[int, ...] = ()
    """Rows of the earlier nights, the newest first."""
    distribution: Distribution = field(default_factory=Distribution)
    """Of the last night that has one, else of the version that is replaced."""
    basis: str = ""
    """Which night or version that is; empty for none."""


def look_back(store: Store, layout: Layout, base: Manifest | None, num_nights: int) -> Past:
    """Find the last nights before this one.

    Args:
        store: The output.
        layout: The partition that is to be published.
        base: What of it is published now.
        num_nights: How many nights to count.

    Raises:
        PipelineError: A manifest cannot be read.
    """
    names = earlier_names(layout.name, store.list_folders("_control"))[:_LOOKED_AT]
    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(partial(current_manifest, store), map(Layout, names))
        nights = [manifest for manifest in found if manifest is not None][:num_nights]
    candidates = [(manifest, manifest.partition) for manifest in nights]
    if base is not None:
        candidates.append((base, f"version {base.number}"))
    rows = tuple(manifest.num_rows for manifest in nights)
    for manifest, basis in candidates:
        if manifest.distribution:
            return Past(rows, Distribution.from_dict(manifest.distribution), basis)
    return Past(rows)


def earlier_names(name: str, names: Sequence[str]) -> list[str]:
    """Return the partitions of the same key before this one, the last first."""
    key, _, value = name.partition("=")
    if not _ORDERED.fullmatch(value):
        return []
    this = _order(value)
    values = [other.partition("=")[2] for other in names if other.startswith(f"{key}=")]
    earlier = [v for v in values if _ORDERED.fullmatch(v) and _order(v) < this]
    return [f"{key}={v}" for v in sorted(earlier, key=_order, reverse=True)]


def partition_order(name: str) -> tuple[bool, tuple[int, ...], str]:
    """Return a key that sorts partitions by date or number, and those that have none before them.

    A name without an order sorts by its letters.
    """
    value = name.partition("=")[2]
    is_ordered = _ORDERED.fullmatch(value) is not None
    return is_ordered, _order(value) if is_ordered else (), name


def _order(value: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", value)))
