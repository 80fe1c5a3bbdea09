"""Look at an input of which nothing is known: its format, its first rows, and its columns."""

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
from pipeline.sources.listing.refused import file_type_of, head_of
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
        fits = [
            name for name, form in forms.items() if file_type and file_type.name in form.file_types
        ]
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


Fields = dict[str, tuple[Any, str]]
"""Field of `source` -> its value, and why."""

_IDS = ("row_id", "id", "uuid", "key")
_LIKE_ID = re.compile(
    r"(.*[_ .-])?(id|key|uuid|guid|no|nr|number|code|ref)|customer|client|user|account|order|sku",
    re.IGNORECASE,
)
_INDEX = re.compile(
    r"|index|level_\d+|__index_level_\d+__|Unnamed: ?\d+|row_?names?", re.IGNORECASE
)
"""What pandas and R call the index of a table that they write."""
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
        takes: The registered name of what the model takes; None: that is not known.
        names: The columns that it takes by name, if it does.
        is_pair: It judges pairs of texts.
        num_features: How many numbers it takes without names; None: that is not known.
        command: The command that asks, to be copied with `--features` behind it.

    Raises:
        JobError: No column fits, or several do, or which are its numbers could only be guessed: one
            line with the choices.
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
            f"the model {get(INPUTS, takes).how_to_name}; none is seen in the first rows: there "
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
    """Choose the column of ids: one that is named like one, and whose first values differ."""
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
    return {"id_column": (id_name, "names a row; without it, the shard and its number do")}


def _may_be_id(rows: pa.Table, name: str, *, by_name: bool = True) -> bool:
    dtype = rows.schema.field(name).type
    is_named = not by_name or _LIKE_ID.fullmatch(name) is not None
    return is_named and (is_text(dtype) or pa.types.is_integer(dtype))


def described(rows: pa.Table, names: Sequence[str] | None = None) -> list[str]:
    """Return columns with what they hold, as in `spent (text like numbers, "1,100.50")`."""
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
    """Require that the numbers are one column of lists, as wide as the model.

    Of columns with a number each, the model says neither which they are nor in which order.

    Raises:
        JobError: They are something else; has the command with the numeric columns of the file.
    """
    proposed = [name for name in names if not _names_rows(rows, name)] or names
    size = sum(_width(rows.column(name)) for name in proposed)
    fits = num_features in (None, size)
    if len(names) == 1 and fits and not is_number(rows.schema.field(names[0]).type):
        return
    choose = "" if fits else f" ({num_of(size, 'number')}, not {num_features})"
    left = [name for name in rows.column_names if name not in proposed]
    doubts = f"; left out here: {names_of(described(rows, left))}" if left else ""
    raise JobError(
        f"the model takes {num_features or 'some'} numbers without names: which columns, in which "
        f"order? {command} --features {quote(','.join(map(_quoted, proposed)))}{choose}{doubts}"
    )


def _names_rows(rows: pa.Table, name: str) -> bool:
    """Tell whether a column of numbers looks like an id, an index, or the number of the row."""
    counted = [[*range(start, start + len(rows))] for start in (0, 1)]
    is_count = len(rows) > 2 and rows.column(name).to_pylist() in counted
    return is_count or _may_be_id(rows, name) or _INDEX.fullmatch(name.strip()) is not None


def _quoted(name: str) -> str:
    """Return a name as a field of CSV, which `--features` takes."""
    is_plain = name == name.strip() != "" and not {*name} & {*',"'}
    return name if is_plain else '"' + name.replace('"', '""') + '"'


def _width(column: pa.ChunkedArray) -> int:
    """Return how many numbers a column gives to a row."""
    if pa.types.is_fixed_size_list(column.type):
        return int(column.type.list_size)
    first = next((value for value in column.to_pylist() if value is not None), None)
    return len(first) if isinstance(first, list) else 1


def inputs_in(rows: pa.Table) -> Mapping[str, Columns]:
    """Return registered name -> the columns that could hold it, the costliest input first.

    A column is of one input only: what stands for an image is no text.
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
    """Return which input the columns must be for: of numbers, and all others, only one."""
    others = [name for name, columns in known.items() if not columns.takes_all][:1]
    fitting = [*others, *(name for name, columns in known.items() if columns.takes_all)]
    if len(fitting) == 1:
        return fitting[0]
    raise JobError(
        "which columns does the model see? --set source.image_column, audio_column, text_column or "
        f"features; there are {names_of(rows.column_names)}"
    )


def _pair(names: Sequence[str]) -> Fields:
    if len(names) != 2:
        raise JobError(
            "which two columns are the pair of texts? --set source.text_column=... --set "
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
            f"the model takes columns by name, and there is no {names_of(missing)}; there are "
            f"{names_of(rows.column_names)}"
        )
    return {"features": ([*names], "the model takes them by name")}
