"""List what is stored: `disk_walk` a disk, `object_pages` a bucket."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from pipeline.process.liveness import note_progress
from pipeline.storage.interface import StoredFile

log = logging.getLogger(__name__)

_PROGRESS_S = 5.0


def collect(pages: Iterator[Sequence[StoredFile]], url: str) -> list[StoredFile]:
    """Put the pages of a listing together, sorted by path; a long one says how far it is."""
    files: list[StoredFile] = []
    say_next = time.monotonic() + _PROGRESS_S
    for page in pages:
        files += page
        note_progress(f"listing: {len(files)} files")
        if time.monotonic() >= say_next:
            say_next = time.monotonic() + _PROGRESS_S
            log.info("listing %s: %d files so far", url, len(files))
    files.sort(key=lambda file: file.path)
    return files
