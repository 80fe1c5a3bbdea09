"""Look at an input of which nothing is known: its format, and its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.printable import clean_message, listed, num_of
from pipeline.core.registry import SOURCES, built_in, load, names
from pipeline.job.extensions import check_options
from pipeline.job.source import Source
from pipeline.sources.listing.first_bytes import file_type_of, head_of
from pipeline.sources.listing.globs import compiled
from pipeline.sources.listing.inputs import open_source, require_there
from pipeline.sources.source_format import FirstRows
from pipeline.storage.skipped import reason_of_name
from pipeline.storage.store import Store, StoredFile

_ROWS, _SHARDS = 200, 16


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
class InputFiles:
    """What lies at an input."""

    source: Source
    """Without the columns."""
    store: Store
    shards: tuple[StoredFile, ...]

    @property
    def format(self) -> str:
        """Return the name of the format."""
        return self.source.format

    @cached_property
    def first(self) -> FirstRows | None:
        """Return the first rows with all their columns; None of formats whose rows have no columns.

        They are those of the first shard that has some.

        Raises:
            JobError: A shard cannot be read as what it is, or none of the first has rows.
        """
        troubles = []
        for shard in self.shards[:_SHARDS]:
            where = self.store.url(shard.path)
            head: FirstRows | None
            try:
                head = load(SOURCES, self.format).first_rows(self.store, shard, self.source)
            except JobError as error:
                raise JobError(f"{where}: {error}") from None
            except (pa.ArrowException, OSError) as error:
                why = clean_message(str(error), 200)
                raise JobError(f"{where}: cannot be read as {self.format}: {why}") from None
            if head is None:
                return None
            if len(head.rows):
                return head._replace(rows=head.rows.slice(0, _ROWS))
            troubles.append(f"{where}: {head.trouble}")
        raise JobError(troubles[0])


def look(uri: str, given: Mapping[str, Any] = MappingProxyType({})) -> InputFiles:
    """Find the format of an input by the names of its files, of a single file by its first bytes.

    Args:
        uri: A folder, a file or a glob.
        given: Fields of `source` that are known: the format, its options, those of the storage.

    Raises:
        InputMissing: There is nothing.
        JobError: No format reads it, or several do; or the options are not of the format.
    """
    wanted = given.get("format")
    storage_options = given.get("storage_options", {})
    store, pattern = open_source(
        Source.model_construct(None, uri=uri, format="images", storage_options=storage_options)
    )
    store, files = _files(store, pattern)
    forms = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    by_format = {
        name: tuple(file for file in files if file.path.lower().endswith(form.suffixes))
        for name, form in forms.items()
    }
    by_format = {name: matching for name, matching in by_format.items() if matching}
    if wanted is None and not by_format and len(files) == 1:
        file_type = file_type_of(head_of(store, files[0]))
        fits = [name for name, form in forms.items() if file_type and file_type.name in form.kinds]
        by_format = {name: tuple(files) for name in fits[:1]}
    if wanted is not None:
        by_format = {wanted: by_format.get(wanted, tuple(files))}
    if not by_format:
        kinds = Counter(f".{file.path.rpartition('.')[2]}"[:12] for file in files)
        there = ", ".join(f"{number} {suffix}" for suffix, number in kinds.most_common(3))
        raise JobError(f"{uri}: no file that a format reads; there are {there or 'none'}")
    if len(by_format) > 1:
        there = ", ".join(f"{name} ({num_of(len(f), 'file')})" for name, f in by_format.items())
        raise Ambiguous.of(f"{uri}: which format", "source.format", [*by_format], there)
    [(name, shards)] = by_format.items()
    options = given.get("options", {})
    try:
        check_options(load(SOURCES, name).Options, options, "source.options", f"format {name!r}")
    except KeyError:
        raise JobError(
            f"source.format = {name!r}: expected one of {', '.join(names(SOURCES))}"
        ) from None
    except ValueError as error:
        raise JobError(str(error)) from None
    source = Source.model_construct(None, uri=uri, format=name, options=options)
    return InputFiles(source, store, shards)


def _files(store: Store, pattern: str) -> tuple[Store, list[StoredFile]]:
    matches = compiled(pattern).match if pattern else None
    files = [
        file
        for file in store.list_files()
        if reason_of_name(file.path) is None and (matches is None or matches(file.path))
    ]
    if files:
        return store, files
    if pattern:
        raise InputMissing(f"source.uri = {store.url(pattern)}: matches no file")
    parent, _, name = store.uri.rpartition("/")
    folder = Store(parent or "/", store.storage_options)
    single = folder.stat(name) if name and not parent.endswith("/") else None
    if single is not None:
        return folder, [single]
    require_there(store)
    raise InputMissing(f"source.uri = {store.url('')}: holds no files; run again when it does")


def names_of(rows: Sequence[str]) -> str:
    """Return names for a message, as many as a line has room for."""
    return clean_message(listed(rows), 300)
