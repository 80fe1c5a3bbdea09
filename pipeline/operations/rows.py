"""Rows in memory as the input of a run: written once, below the output."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from pipeline.commit.parts.part_file import write_file
from pipeline.core.errors import JobError
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import pandas as pd

    Rows: TypeAlias = str | os.PathLike[str] | pa.Table | pd.DataFrame | Sequence[str]
    """A path, or rows in memory: a table, or texts."""

FOLDER, TEXT = "input", "text"
_GROUP_ROWS = 65_536


def stored_rows(rows: Rows, to: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Write rows in memory as one Parquet file below an output, unless it is there; return its URI.

    The file is named by the digest of its content. A path is returned as it is.

    Args:
        rows: A path, a table of pyarrow, a DataFrame of pandas, whose index is left out, or texts,
            which become the column `text`.
        to: Root of the output.

    Raises:
        JobError: They are something else, or no columns of Parquet can be made of them.
    """
    if isinstance(rows, str | os.PathLike):
        return rows
    table, file = _table(rows), io.BytesIO()
    try:
        with write_file(file, table.schema) as writer:
            writer.write_table(table, row_group_size=_GROUP_ROWS)
    except pa.ArrowException as error:
        raise JobError(f"input: its columns cannot be written as Parquet: {error}") from error
    data, store = file.getvalue(), Store(os.fspath(to))
    name = f"{FOLDER}/rows-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
    if store.stat(name) is None:
        store.put(name, data)
    return store.url(name)


def _table(rows: Any) -> pa.Table:
    if isinstance(rows, pa.Table):
        return rows
    try:
        if hasattr(rows, "to_parquet") and hasattr(rows, "columns"):
            return pa.Table.from_pandas(rows, preserve_index=False).replace_schema_metadata()
        if isinstance(rows, Sequence) and all(isinstance(text, str | None) for text in rows):
            return pa.table({TEXT: pa.array(rows, pa.string())})
    except (pa.ArrowException, UnicodeError) as error:
        raise JobError(f"input: no table of Arrow can be made of it: {error}") from error
    raise JobError(
        f"input: is of type {type(rows).__name__}; expected a path, a table of pyarrow, a "
        "DataFrame of pandas or a list of texts"
    )
