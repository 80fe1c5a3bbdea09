"""Look at an input of which nothing is known: its format, and its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.printable import clean_message, num_of
from pipeline.core.registry import SOURCES, built_in, load
from pipeline.job.source import Source
from pipeline.sources.first_bytes import head_of, kind_of
from pipeline.sources.globs import compiled
from pipeline.sources.inputs import open_source, require_there
from pipeline.storage.skipped import reason_of_name
from pipeline.storage.store import Store, StoredFile

_ROWS = 200


class Ambiguous(JobError):
    """Several answers fit; `field` of the job gives one of `choices`."""

    field: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, question: str, field: str, choices: Sequence[str], shown: str) -> Ambiguous:
        """Return the error: one line with the choices, as they are shown."""
        error = cls(f"{question}? --set {field}=... of {shown}")
        error.field, error.choices = field, tuple(choices)
        return error


@dataclass(frozen=True)
class Found:
    """What lies at an input."""

    format: str
    store: Store
    shards: tuple[StoredFile, ...]

    def first_rows(self) -> pa.Table | None:
        """Return the first rows with all their columns; None of formats whose rows have no columns.

        Raises:
            JobError: The first shard cannot be read as what it is.
        """
        shard = self.shards[0]
        try:
            rows = load(SOURCES, self.format).first_rows(self.store, shard)
            return None if rows is None else rows.slice(0, _ROWS)
        except (pa.ArrowException, OSError) as error:
            why = clean_message(str(error), 200)
            raise JobError(
                f"{self.store.url(shard.path)}: cannot be read as {self.format}: {why}; write a "
                "job file, jobs/README.md has its fields"
            ) from None


def look(uri: str, wanted: str | None = None) -> Found:
    """Find the format of an input by the names of its files, of a single file by its first bytes.

    Args:
        uri: A folder, a file or a glob.
        wanted: The format, if it is known.

    Raises:
        InputMissing: There is nothing.
        JobError: No format reads it, or several do.
    """
    store, pattern = open_source(Source(uri=uri, format="images"))
    store, files = _files(store, pattern)
    forms = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    by_format = {
        name: tuple(file for file in files if file.path.lower().endswith(form.suffixes))
        for name, form in forms.items()
    }
    by_format = {name: found for name, found in by_format.items() if found}
    if wanted is None and not by_format and len(files) == 1:
        kind = kind_of(head_of(store, files[0]))
        fits = [name for name, form in forms.items() if kind and kind.name in form.kinds]
        by_format = {name: tuple(files) for name in fits[:1]}
    if wanted is not None:
        return Found(wanted, store, by_format.get(wanted, tuple(files)))
    if not by_format:
        kinds = Counter(f".{file.path.rpartition('.')[2]}"[:12] for file in files)
        there = ", ".join(f"{number} {suffix}" for suffix, number in kinds.most_common(3))
        raise JobError(f"{uri}: no file that a format reads; there are {there or 'none'}")
    if len(by_format) > 1:
        there = ", ".join(f"{name} ({num_of(len(f), 'file')})" for name, f in by_format.items())
        raise Ambiguous.of(f"{uri}: which format", "source.format", [*by_format], there)
    [(name, shards)] = by_format.items()
    return Found(name, store, shards)


def _files(store: Store, pattern: str) -> tuple[Store, list[StoredFile]]:
    matches = compiled(pattern).match if pattern else None
    files = [
        file
        for file in store.list_files()
        if reason_of_name(file.path) is None and (matches is None or matches(file.path))
    ]
    if files or pattern:
        return store, files
    parent, _, name = store.uri.rpartition("/")
    folder = Store(parent or "/", store.storage_options)
    single = folder.stat(name) if name and not parent.endswith("/") else None
    if single is not None:
        return folder, [single]
    require_there(store)
    raise InputMissing(f"source.uri = {store.url('')}: holds no files; run again when it does")


def names_of(rows: Sequence[str]) -> str:
    """Return names for a message, as many as a line has room for."""
    return clean_message(", ".join(rows), 300)
