"""Pins: files that keep a version, its parts and its keys, while rows of it are carried.

A run writes a pin before it reads a version. The pin is deleted once the run has published: by the
run, or by the next command that repairs the partition. A version that is not current is deleted
only if no pin names it. `gc` deletes the pins of runs that were killed before they published.
"""

from __future__ import annotations

import json
import logging
import re

from pipeline.commit.layout import Layout
from pipeline.core.errors import PipelineError
from pipeline.storage.store import Store

log = logging.getLogger(__name__)
_NAME = re.compile(r"(\d{10})-[^/]+\.json")


def pin(store: Store, layout: Layout, number: int, token: str, by: str) -> None:
    """Keep a version of a partition; done again, it is kept for longer.

    A version may have been deleted before the pin was written, so look for it afterwards.

    Args:
        layout: The partition of the version.
        number: Of the version.
        token: Of its manifest.
        by: Who keeps it, unique to the work and good for a file name: a fingerprint, a run's id.
    """
    document = {"number": number, "token": token, "by": by}
    store.put(_path(layout, number, by), json.dumps(document).encode())


def unpin(store: Store, layout: Layout, number: int, by: str) -> None:
    """Delete the pin of `by`; one that cannot be deleted is left to `gc`."""
    try:
        store.delete([_path(layout, number, by)])
    except PipelineError as error:
        log.warning("version %d of %s is kept for longer: %s", number, layout.name, error)


def pinned(store: Store, layout: Layout) -> set[int]:
    """Return the numbers of the versions of a partition that must stay."""
    prefix = f"{layout.pins}/"
    names = (file.path.removeprefix(prefix) for file in store.list_files(layout.pins))
    return {int(found[1]) for name in names if (found := _NAME.fullmatch(name))}


def _path(layout: Layout, number: int, by: str) -> str:
    return f"{layout.pins}/{number:010d}-{by}.json"
