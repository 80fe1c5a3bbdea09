"""List many small folders of an object store in few requests, past the large ones between them.

Keys come in order, a thousand in an answer: one answer has the files of many folders. Where it ends
inside something that is not wanted, the next one begins at the next wanted folder.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from pipeline.storage.interface import Page, StoredFile

FetchAfter = Callable[[str], Page]
"""A key -> the page of the keys after it; its token is its last key, None if no more follow."""

_CALLS_AT_ONCE = 32
_THREADS = 8
_LEAST_FOLDERS = 128
"""Of one thread: about as many as an answer has, if each has a few files."""


def have_plain_order(folders: Sequence[str]) -> bool:
    """Tell whether folders sort alike as texts and name by name.

    Servers that keep folders as such list `a/` before `a.b/`; others sort whole keys.
    """
    return sorted(folders) == sorted(folders, key=lambda each: each.split("/"))


def list_one_by_one(
    list_files: Callable[[str], Sequence[StoredFile]], folders: Sequence[str]
) -> list[StoredFile]:
    """List the files below folders by a call for each, sorted by path."""
    with ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="list") as pool:
        files = [file for found in pool.map(list_files, folders) for file in found]
    return sorted(files, key=lambda file: file.path)


def list_folders(fetch: FetchAfter, folders: Sequence[str]) -> Iterator[Sequence[StoredFile]]:
    """Yield the files below folders; none of these lies in another."""
    wanted = sorted(f"{each}/" for each in folders)
    step = max(_LEAST_FOLDERS, -(-len(wanted) // _THREADS))
    groups = [wanted[begin : begin + step] for begin in range(0, len(wanted), step)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="list") as pool:
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
    """Return what sorts after all keys below a folder, and before all that follow these."""
    return f"{folder[:-1]}0"  # the character after "/"
