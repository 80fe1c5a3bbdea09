"""List an object store in parallel, page by page, without assumptions about its keys.

A folder of one page costs one request. A larger folder is asked once for its common prefixes: if
there are few, they are listed at the same time; otherwise page after page is read.
"""

from __future__ import annotations

import functools
import logging
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

from pipeline.process.liveness import note_progress
from pipeline.storage.interface import Page, StoredFile

log = logging.getLogger(__name__)

FetchPage = Callable[[str, bool, str | None], Page]
"""folder, whether to stop at the next `/`, token -> page; retries inside."""

_PROGRESS_S = 5.0
_THREADS = 16
_MAX_PREFIXES = 256
FetchAfter = Callable[[str], Page]
"""A key -> the page of the keys after it; the token is its last key, None for the last page."""
_CALLS_AT_ONCE = 32
_FOLDER_THREADS = 8
_LEAST_FOLDERS = 128
"""Folders of one thread: about as many as one answer has, if each has a few files."""


@dataclass(frozen=True)
class _Step:
    """The files of one request, and the next requests."""

    files: Sequence[StoredFile]
    next_steps: Sequence[Callable[[], _Step]] = ()


def list_in_parallel(fetch: FetchPage, folder: str) -> Iterator[Sequence[StoredFile]]:
    """Yield the files below a folder, in any order."""
    first = _begin(fetch, folder)
    yield first.files
    if not first.next_steps:
        return
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
        waiting: set[Future[_Step]] = {pool.submit(step) for step in first.next_steps}
        try:
            while waiting:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    step = future.result()
                    yield step.files
                    waiting |= {pool.submit(next_step) for next_step in step.next_steps}
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(fetch: FetchPage, folder: str) -> _Step:
    page = fetch(folder, False, None)
    if not page.next_token:
        return _Step(page.files)
    return _Step((), [functools.partial(_split, fetch, folder, page, folder)])


def _split(fetch: FetchPage, folder: str, flat: Page, below: str) -> _Step:
    """Continue with the folders below if there are few, otherwise with the next flat page.

    Args:
        fetch: Requests a page.
        flat: The first page of the folder; if it shows no folders, none are requested.
        below: `folder`, or the only folder in it.
    """
    skipped = len(below) + (below[-1:] not in ("", "/"))
    if any("/" in file.path[skipped:] for file in flat.files):
        page = fetch(below, True, None)
        if not page.next_token and len(page.prefixes) == 1 and not page.files:
            return _split(fetch, folder, flat, page.prefixes[0])
        if not page.next_token and 0 < len(page.prefixes) <= _MAX_PREFIXES:
            more = [functools.partial(_begin, fetch, prefix) for prefix in page.prefixes]
            return _Step(page.files, more)
    return _Step(flat.files, [functools.partial(_go_on, fetch, folder, flat.next_token)])


def _go_on(fetch: FetchPage, folder: str, token: str | None) -> _Step:
    page = fetch(folder, False, token)
    more = [functools.partial(_go_on, fetch, folder, page.next_token)] if page.next_token else []
    return _Step(page.files, more)


def folder_names(fetch: FetchPage, folder: str) -> list[str]:
    """List the names of the folders directly below a folder, sorted."""
    names: set[str] = set()
    page = fetch(folder, True, None)
    while True:
        names.update(prefix.rstrip("/").rpartition("/")[2] for prefix in page.prefixes)
        if not page.next_token:
            return sorted(names)
        page = fetch(folder, True, page.next_token)


def have_plain_order(folders: Sequence[str]) -> bool:
    """Tell whether folders sort alike as whole texts and name by name.

    Servers with real folders list `a/` before `a.b/`; others sort whole keys.
    """
    return sorted(folders) == sorted(folders, key=lambda folder: folder.split("/"))


def list_one_by_one(
    list_files: Callable[[str], Sequence[StoredFile]], folders: Sequence[str]
) -> list[StoredFile]:
    """List the files below folders, one call per folder, sorted by path."""
    with ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="list") as pool:
        files = [file for listing in pool.map(list_files, folders) for file in listing]
    return sorted(files, key=lambda file: file.path)


def list_folders(fetch: FetchAfter, folders: Sequence[str]) -> Iterator[Sequence[StoredFile]]:
    """Yield the files below many small folders in few requests; no folder is inside another.

    Keys come in order, a thousand per answer, so one answer has the files of many folders. If it
    ends between wanted folders, the next request begins at the next wanted one.
    """
    wanted = sorted(f"{folder}/" for folder in folders)
    step = max(_LEAST_FOLDERS, -(-len(wanted) // _FOLDER_THREADS))
    groups = [wanted[begin : begin + step] for begin in range(0, len(wanted), step)]
    with ThreadPoolExecutor(_FOLDER_THREADS, thread_name_prefix="list") as pool:
        yield from pool.map(partial(_scan, fetch), groups)


def _scan(fetch: FetchAfter, wanted: Sequence[str]) -> list[StoredFile]:
    files: list[StoredFile] = []
    after, index = wanted[0], 0
    while True:
        page = fetch(after)
        files += [file for file in page.files if _is_below_one(file.path, wanted)]
        last = page.next_token
        if last is None:
            return files
        while index < len(wanted) and _end(wanted[index]) <= last:
            index += 1
        if index == len(wanted):
            return files
        after = max(last, wanted[index])


def _is_below_one(path: str, wanted: Sequence[str]) -> bool:
    index = bisect_right(wanted, path) - 1
    return index >= 0 and path.startswith(wanted[index])


def _end(folder: str) -> str:
    """Return the smallest text that sorts after all keys below a folder."""
    return f"{folder[:-1]}0"  # the character after "/"


def collect(pages: Iterator[Sequence[StoredFile]], url: str) -> list[StoredFile]:
    """Collect the pages of a listing, sorted by path; log the progress of a long one."""
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
