"""The checks of `verify` beside those of rows and bytes, and what a check says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import (
    Manifest,
    log_numbers,
    unexpected_files_in_log,
)
from pipeline.commit.shard_table import KnownShard, NoKeys, read_shard_table
from pipeline.storage.store import Store


@dataclass(frozen=True)
class Check:
    """What one check found."""

    name: str
    status: Literal["pass", "fail", "skipped"]
    message: str


def verdict(name: str, problems: Sequence[str], fine: str) -> Check:
    """Return a check that fails if there are problems."""
    if not problems:
        return Check(name, "pass", fine)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return Check(name, "fail", problems[0] + more)


def check_log(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check that the log is 1, 2, 3, ... and that its last entry is what its name says."""
    numbers = log_numbers(store, layout)
    problems = []
    if numbers != list(range(1, len(numbers) + 1)):
        problems.append(f"{layout.log}: the entries are not 1 to {len(numbers)}")
    if numbers and manifest.number != numbers[-1]:
        problems.append(f"{layout.log_entry(numbers[-1])} says that it is {manifest.number}")
    if manifest.partition != layout.name:
        problems.append(f"the manifest says partition {manifest.partition}, not {layout.name}")
    problems += [f"{path} is no log entry" for path in unexpected_files_in_log(store, layout)]
    return verdict("log", problems, f"entries 1 to {len(numbers)}, of {layout.name}")


def check_keys(store: Store, layout: Layout, manifest: Manifest) -> Check:
    """Check what a version knows; one that knows nothing is a version all the same."""
    if not manifest.keys:
        return Check("keys", "skipped", "this version has no table of its shards")
    try:
        table = read_shard_table(store, layout, manifest)
    except NoKeys as error:
        return Check("keys", "fail", str(error))
    problems = [*_problems_of_shards(table.shards, manifest)]
    return verdict("keys", problems, f"{len(table.shards)} shards, as written")


def _problems_of_shards(shards: Sequence[KnownShard], manifest: Manifest) -> Iterator[str]:
    for shard in shards:
        if not all(0 <= row < shard.num_rows for row in shard.failed):
            yield f"{shard.uri} has {shard.num_rows} rows, and others that failed"
    ends = [shard.first + shard.num_rows - len(shard.failed) for shard in shards]
    for (shard, end), (other, _) in pairwise(zip(shards, ends, strict=True)):
        if end > other.first:
            yield f"{shard.uri} and {other.uri} have the same predictions"
    predicted = sum(shard.num_rows - len(shard.failed) for shard in shards)
    written = sum(part.num_rows for part in manifest.parts)
    if max(ends, default=0) > written:
        yield f"the shards have predictions beyond the {written} of the version"
    if shards and not manifest.num_unreadable_shards and predicted != written:
        yield f"the shards have {predicted} predictions, the version {written}"


def linked_files(store: Store, layout: Layout) -> list[str]:
    """List links in the published folders of a local sink: listings skip them, readers do not."""
    if store.is_object_store:
        return []
    root = Path(store.url(""))
    return sorted(
        str(Path(folder, name).relative_to(root))
        for top in (layout.predictions, layout.quarantine)
        for folder, folders, names in os.walk(root / top)
        for name in (*folders, *names)
        if Path(folder, name).is_symlink() and not name.startswith((".", "_"))
    )
