"""Find what a URI names: an output, a partition of it, and what is published there now."""

from __future__ import annotations

import os
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest, current_manifest, not_published
from pipeline.core.errors import JobError
from pipeline.core.output_folders import CONTROL, PREDICTIONS
from pipeline.core.printable import clean_message
from pipeline.storage.store import Store


def locate(
    uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
) -> tuple[Store, Layout | None]:
    """Find the output that a URI points into, and the partition if it names one.

    Accepts the sink's root, also if it is called `predictions`, a partition's folder under
    `predictions/`, and the partition's name right below the root.

    Raises:
        JobError: It is no path or URI.
    """
    text = os.fspath(uri) if isinstance(uri, str | os.PathLike) else uri
    if not isinstance(text, str) or "\0" in text:
        raise JobError(f"{clean_message(repr(uri), 80)}: no place of an output; give a path or URI")
    trimmed = text.rstrip("/")
    head, separator, tail = trimmed.rpartition(f"/{PREDICTIONS}")
    store = Store(trimmed, storage_options or {})
    is_root = separator and not tail and store.list_folders(CONTROL)
    if separator and not is_root and (not tail or (tail.startswith("/") and "/" not in tail[1:])):
        return Store(head, storage_options or {}), Layout(tail[1:] or None)
    root, _, name = trimmed.rpartition("/")
    if "=" in name and not store.list_folders(CONTROL):
        output = Store(root or ".", storage_options or {})
        if name in output.list_folders(CONTROL):
            return output, Layout(name)
    return store, None


def require_current(store: Store, layout: Layout) -> Manifest:
    """Return the manifest of what is published now.

    Raises:
        JobError: Nothing is published; the message says what there is instead.
    """
    manifest = current_manifest(store, layout)
    if manifest is None:
        raise not_published(store, layout)
    return manifest
