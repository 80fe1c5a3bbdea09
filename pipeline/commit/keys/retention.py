"""Which key files of a partition no version needs, and those of a version that is restored."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.commit.keys.meta import META, NoKeys, read_keys
from pipeline.commit.keys.pins import pinned
from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, log_numbers, read_manifest
from pipeline.storage.store import Store, StoredFile

_VERSION = re.compile(r"(\d{6,})-[0-9a-f]{12}")


def unneeded_keys(
    store: Store, layout: Layout, current: Manifest | None, kept: Iterable[int]
) -> list[tuple[int, StoredFile]]:
    """Find key files that no version names which is current, in the history or pinned.

    Args:
        current: Its current manifest; None: nothing is published.
        kept: The numbers of the versions in the history.

    Returns:
        Each file, with the number of the version that it was written for.
    """
    found: dict[str, list[tuple[int, StoredFile]]] = {}
    for file in store.list_files(layout.all_keys):
        folder = file.path.removeprefix(f"{layout.all_keys}/").split("/")[0]
        if version := _VERSION.fullmatch(folder):
            found.setdefault(layout.keys(folder), []).append((int(version[1]), file))
    if current is not None:
        found.pop(current.keys.get("folder", ""), None)
    own, in_history = [files[0][0] for files in found.values()], {*kept}
    if len({*own}) == len(own) and in_history.issuperset(own):
        return []  # as mostly: each is of a version in the history, and no manifest is read
    numbers = in_history | pinned(store, layout)
    for number in numbers.intersection(log_numbers(store, layout)):
        found.pop(read_manifest(store, layout, number).keys.get("folder", ""), None)
    return [pair for files in found.values() for pair in files]


def copy_keys(store: Store, layout: Layout, old: Manifest, folder: str) -> dict[str, str]:
    """Copy the keys of a version for one that has the same parts; return its `Manifest.keys`.

    Keys that are missing or damaged are not copied: the version then has none.
    """
    try:
        keys = read_keys(store, layout, old)
        for name in (*keys.files, META):
            store.copy(f"{keys.folder}/{name}", f"{folder}/{name}")
    except (NoKeys, FileNotFoundError):
        return {}
    return {**old.keys, "folder": folder}
