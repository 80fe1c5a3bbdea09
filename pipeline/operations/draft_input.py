"""Detect the format of an input, and choose its columns and row id by its first rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from shlex import quote
from types import MappingProxyType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import InputMissing, JobError
from pipeline.core.printable import clean_message, listed, num_of
from pipeline.core.registry import INPUTS, SOURCES, built_in, get, load, names, usable
from pipeline.job.registered import check_options
from pipeline.job.source import Source
from pipeline.preprocessing.model_input import Columns, Cost
from pipeline.sources.columns.arrow_types import is_number, is_text
from pipeline.sources.formats.csv import number_options
from pipeline.sources.listing.inputs import compiled, open_source, require_there
from pipeline.sources.listing.refused import (
    file_type_of,
    head_of,
    lake_format_at,
    refuse_tables,
    table_of,
)
from pipeline.sources.source_format import FirstRows
from pipeline.storage.skipped import reason_of_name
from pipeline.storage.store import Store, StoredFile

_ROWS, _SHARDS = 200, 16


class Ambiguous(JobError):
    """Several choices fit; `field` of the job must be set to one of them."""

    field: str = ""
    choices: tuple[str, ...] = ()

    @classmethod
    def of(cls, question: str, field: str, choices: Sequence[str], shown: str) -> Ambiguous:
        """Return the error: one line with the choices as `shown`."""
        error = cls(f"{question}? --set {field}=... to one of {shown}")
        error.field, error.choices = field, tuple(choices)
        return error


@dataclass(frozen=True)
class InputFiles:
    """The files of an input."""

    source: Source
    """The section without columns."""
    store: Store
    shards: tuple[StoredFile, ...]

    @property
    def format(self) -> str:
        """Return the name of the format."""
        return self.source.format

    @cached_property
    def first(self) -> FirstRows | None:
        """The first rows, with all columns, of the first shard that has rows.

        None for formats whose rows have no columns.

        Raises:
            JobError: A shard cannot be read, or none of the first ones has rows.
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
    """Detect the format of an input by its file names, or of a single file by its first bytes.

    Args:
        uri: A folder, a file or a glob.
        given: Known fields of `source`: the format, its options, storage options.

    Raises:
        InputMissing: There are no files.
        JobError: No format reads them, or several do, or an option does not fit the format.
    """
    wanted = given.get("format")
    storage_options = given.get("storage_options", {})
    store, pattern = open_source(
        Source.model_construct(None, uri=uri, format="images", storage_options=storage_options)
    )
    is_given = wanted is not None and load(SOURCES, wanted).is_lake
    lake = wanted if is_given else None if wanted or pattern else lake_format_at(store)
    if lake is not None:
        return _table(uri, store, lake, given)
    store, files = _files(store, pattern)
    refuse_tables(store, files, filter(None, (table_of(file.path) for file in files)))
    forms = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    forms = {name: form for name, form in forms.items() if not form.is_lake}
    by_format = {
        name: tuple(file for file in files if file.path.lower().endswith(form.suffixes))
        for name, form in forms.items()
    }
    by_format = {name: matching for name, matching in by_format.items() if matching}
    if wanted is None and not by_format and len(files) == 1:
        file_type = file_type_of(head_of(store, files[0]))
        fits = [
            name for name, form in forms.items() if file_type and file_type.name in form.file_types
        ]
        by_format = {name: tuple(files) for name in fits[:1]}
    if wanted is not None:
        by_format = {wanted: by_format.get(wanted, tuple(files))}
    if not by_format:
        kinds = Counter(f".{file.path.rpartition('.')[2]}"[:12] for file in files)
        there = ", ".join(f"{number} {suffix}" for suffix, number in kinds.most_common(3))
        raise JobError(f"{uri}: no supported input files; it has {there or 'none'}")
    if len(by_format) > 1:
        there = ", ".join(f"{name} ({num_of(len(f), 'file')})" for name, f in by_format.items())
        raise Ambiguous.of(f"{uri}: which format", "source.format", [*by_format], there)
    [(name, shards)] = by_format.items()
    return InputFiles(_section(uri, name, given), store, shards)


def _section(uri: str, name: str, given: Mapping[str, Any]) -> Source:
    options = given.get("options", {})
    try:
        check_options(load(SOURCES, name).Options, options, "source.options", f"format {name!r}")
    except KeyError:
        raise JobError(
            f"source.format = {name!r}: expected one of {', '.join(names(SOURCES))}"
        ) from None
    except ValueError as error:
        raise JobError(str(error)) from None
    return Source.model_construct(None, uri=uri, format=name, options=options)


def _table(uri: str, store: Store, name: str, given: Mapping[str, Any]) -> InputFiles:
    source = _section(uri, name, given)
    shards = tuple(load(SOURCES, name).list_table(store, source))
    if not shards:
        raise InputMissing(f"source.uri = {uri}: the table has no rows; run again when it has")
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
    if (single := store.as_file()) is not None:
        folder, file = single
        return folder, [file]
    require_there(store)
    raise InputMissing(f"source.uri = {store.url('')}: holds no files; run again when it does")


def names_of(rows: Sequence[str]) -> str:
    """Return names for a message, as many as fit in a line."""
    return clean_message(listed(rows), 300)


Fields = dict[str, tuple[Any, str]]
"""Field of `source` -> its value and the reason."""

_IDS = ("row_id", "id", "uuid", "key")
_LIKE_ID = re.compile(
    r"(.*[_ .-])?(id|key|uuid|guid|no|nr|number|code|ref)|customer|client|user|account|order|sku",
    re.IGNORECASE,
)
_INDEX = re.compile(
    r"|index|level_\d+|__index_level_\d+__|Unnamed: ?\d+|row_?names?", re.IGNORECASE
)
"""Names that pandas and R give to the index of a table."""
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
_LIKE_NUMBER = re.compile(r"\s*[-+(]?[$\u20ac\u00a3]?\s*[0-9][0-9.,'\s]*[%$\u20ac\u00a3)]?\s*")


def choose_columns(
    rows: pa.Table,
    takes: str | None,
    names: Sequence[str] = (),
    *,
    is_pair: bool = False,
    num_features: int | None = None,
    command: str = "",
) -> Fields:
    """Choose the columns of the input.

    Args:
        rows: The first rows.
        takes: Registered name of the model's input; None: unknown.
        names: The columns that the model takes by name, if any.
        is_pair: The model judges pairs of texts.
        num_features: Number of unnamed numeric inputs; None: unknown.
        command: The command of the user, to be repeated with `--features`.

    Raises:
        JobError: No column fits, or several do, or the numeric columns are ambiguous; one line has
            the choices.
    """
    if names:
        return _by_name(rows, names)
    known = inputs_in(rows)
    takes = takes or _only_one(rows, known)
    columns = known.get(takes)
    if is_pair:
        return _pair(columns.names if columns else ())
    if columns is None:
        raise JobError(
            f"the model {get(INPUTS, takes).how_to_name}; the first rows have none: there "
            f"are {names_of(described(rows))}"
        )
    if columns.takes_all:
        _require_one_vector(rows, columns.names, num_features, command)
        return {columns.field: ([*columns.names], f"the only one with {takes}")}
    usual = [name for name in columns.names if name.lower() in columns.usual]
    if len(usual) == 1 < len(columns.names):
        others = names_of([name for name in columns.names if name not in usual])
        return {columns.field: (usual[0], f"fits as well: {others}"), **columns.more}
    if len(columns.names) > 1:
        field = f"source.{columns.field}"
        raise Ambiguous.of(
            f"which column has the {takes}", field, columns.names, names_of(columns.names)
        )
    return {columns.field: (columns.names[0], f"the only one with {takes}"), **columns.more}


def choose_id(rows: pa.Table) -> Fields:
    """Choose the column of ids: one with a name like an id, and distinct values."""
    by_name = {name.lower(): name for name in rows.column_names}
    ends = [name for name in rows.column_names if name.lower().endswith("_id")]
    id_name = next((by_name[name] for name in _IDS if name in by_name), None)
    for likely in (ends, [name for name in rows.column_names if _may_be_id(rows, name)]):
        if id_name is None and len(likely) == 1:
            [id_name] = likely
    if id_name is None or not _may_be_id(rows, id_name, by_name=False):
        return {}
    values = rows.column(id_name)
    if values.null_count or pc.count_distinct(values).as_py() < len(values):
        return {}
    return {
        "id_column": (id_name, "identifies a row; the default is the shard and the row's number")
    }


def _may_be_id(rows: pa.Table, name: str, *, by_name: bool = True) -> bool:
    dtype = rows.schema.field(name).type
    is_named = not by_name or _LIKE_ID.fullmatch(name) is not None
    return is_named and (is_text(dtype) or pa.types.is_integer(dtype))


def described(rows: pa.Table, names: Sequence[str] | None = None) -> list[str]:
    """Return columns with their content, such as `spent (text among numbers, "1,100.50")`."""
    return [
        f"{listed([name])} ({_content(rows.column(name))})"
        for name in (rows.column_names if names is None else names)
    ]


def _content(values: pa.ChunkedArray) -> str:
    if not is_text(values.type):
        return str(values.type)
    texts = [text for text in values.to_pylist() if text]
    if 2 * sum(map(bool, map(_LIKE_NUMBER.fullmatch, texts))) < max(len(texts), 1):
        return "text"
    odd = next((text for text in texts if not _NUMBER.fullmatch(text)), texts[0])
    cure = number_options(texts)
    return f'text among numbers, "{odd:.40}"' + (f"; {cure}" if cure else "")


def _require_one_vector(
    rows: pa.Table, names: Sequence[str], num_features: int | None, command: str
) -> None:
    """Require one column of lists with as many numbers as the model takes.

    With scalar columns, the model tells neither which ones it takes nor in which order.

    Raises:
        JobError: There is no such column; it has the command with the numeric columns of the file.
    """
    proposed = [name for name in names if not _names_rows(rows, name)] or names
    size = sum(_width(rows.column(name)) for name in proposed)
    fits = num_features in (None, size)
    if len(names) == 1 and fits and not is_number(rows.schema.field(names[0]).type):
        return
    choose = "" if fits else f" ({num_of(size, 'number')}, not {num_features})"
    left = [name for name in rows.column_names if name not in proposed]
    doubts = f"; not in this list: {names_of(described(rows, left))}" if left else ""
    raise JobError(
        f"the model takes {num_features or 'several'} unnamed inputs; list the columns in order: "
        f"{command} --features {quote(','.join(map(_quoted, proposed)))}{choose}{doubts}"
    )


def _names_rows(rows: pa.Table, name: str) -> bool:
    """Tell whether a column of numbers looks like an id, an index, or a row number."""
    counted = [[*range(start, start + len(rows))] for start in (0, 1)]
    is_count = len(rows) > 2 and rows.column(name).to_pylist() in counted
    return is_count or _may_be_id(rows, name) or _INDEX.fullmatch(name.strip()) is not None


def _quoted(name: str) -> str:
    """Return a name as a field of CSV, for `--features`."""
    is_plain = name == name.strip() != "" and not {*name} & {*',"'}
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _width(column: pa.ChunkedArray) -> int:
    """Return the number of numbers per row in a column."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    first = next((value for value in column.to_pylist() if value is not None), None)
    return len(first) if isinstance(first, list) else 1


def inputs_in(rows: pa.Table) -> Mapping[str, Columns]:
    """Return registered name of an input -> columns that may hold it, the costliest input first.

    A column belongs to one input only: a column of image URIs is not one of texts.
    """
    ids = [value for value, _ in choose_id(rows).values()]
    costs, fitting, taken = get_args(Cost), dict[str, Columns](), set[str]()
    for name, input_class in sorted(usable(INPUTS), key=lambda entry: -costs.index(entry[1].cost)):
        for columns in input_class.columns_in(rows, ids):
            left = [column for column in columns.names if column not in taken]
            if left and name not in fitting:
                fitting[name] = columns._replace(names=left)
            taken |= {*left}
    return fitting


def _only_one(rows: pa.Table, known: Mapping[str, Columns]) -> str:
    """Return the only input that the columns can hold."""
    others = [name for name, columns in known.items() if not columns.takes_all][:1]
    fitting = [*others, *(name for name, columns in known.items() if columns.takes_all)]
    if len(fitting) == 1:
        return fitting[0]
    raise JobError(
        "which columns are the model's input? --set source.image_column, audio_column, text_column "
        f"or features; there are {names_of(rows.column_names)}"
    )


def _pair(names: Sequence[str]) -> Fields:
    if len(names) != 2:
        raise JobError(
            "which two columns are the pairs of texts? --set source.text_column=... --set "
            f"source.text_pair_column=...; there are {names_of(names) or 'none'}"
        )
    return {
        "text_column": (names[0], "the first of two with texts"),
        "text_pair_column": (names[1], "the second one"),
    }


def _by_name(rows: pa.Table, names: Sequence[str]) -> Fields:
    missing = [name for name in names if name not in rows.column_names]
    if missing:
        raise JobError(
            f"the model takes columns by name, but there is no {names_of(missing)}; there are "
            f"{names_of(rows.column_names)}"
        )
    return {"features": ([*names], "the model takes them by name")}
