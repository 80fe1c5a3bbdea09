"""Choose the columns that a model sees, and the one that names a row, from the first rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.errors import JobError
from pipeline.operations.first_steps.first_rows import Ambiguous, names_of
from pipeline.preprocessing.images.image_formats import identify
from pipeline.sources.columns.arrow_types import is_binary, is_number, is_text
from pipeline.sources.columns.images import decode_base64
from pipeline.sources.image_files import ImageFiles

Takes = Literal["image", "text", "features"]
Fields = dict[str, tuple[Any, str]]
"""Field of `source` -> its value, and why."""

_IDS = ("row_id", "id", "uuid", "key")
_TEXTS = ("text", "content", "body", "sentence", "document", "passage")
_LIMIT_BYTES = 64 * 2**20
_OTHER = {
    "image": "encoded images (binary, or text in base64), or URIs of images",
    "text": "texts",
    "features": "numbers",
}
_FIELD = {"image": "image_column", "text": "text_column", "features": "features"}


def choose_columns(
    rows: pa.Table, takes: Takes | None, names: Sequence[str] = (), *, is_pair: bool = False
) -> Fields:
    """Choose the columns of the input.

    Args:
        rows: The first rows.
        takes: What the model takes; None: that is not known.
        names: The columns that it takes by name, if it does.
        is_pair: It judges pairs of texts.

    Raises:
        JobError: No column fits, or several do: one line with the choices.
    """
    if takes is None:
        takes = _only_kind(rows)
    if takes == "image":
        return _image(rows)
    return _texts(rows, is_pair=is_pair) if takes == "text" else _features(rows, names)


def choose_id(rows: pa.Table) -> Fields:
    """Choose the column of ids: one that is named like one, and whose first values differ."""
    by_name = {name.lower(): name for name in rows.column_names}
    ends = [name for name in rows.column_names if name.lower().endswith("_id")]
    found = next((by_name[name] for name in _IDS if name in by_name), None)
    if found is None and len(ends) == 1:
        [found] = ends
    if found is None:
        return {}
    values, kind = rows.column(found), rows.schema.field(found).type
    is_id = is_text(kind) or pa.types.is_integer(kind)
    if not is_id or values.null_count or pc.count_distinct(values).as_py() < len(values):
        return {}
    return {"id_column": (found, "names a row; without it, the shard and its number do")}


def holds_images(rows: pa.Table) -> bool:
    """Tell whether a column has images, or stands for some."""
    return bool(_images(rows) or _base64(rows) or _uris(rows))


def _only_kind(rows: pa.Table) -> Takes:
    """Return what the columns must be for, if they are of one kind."""
    found: list[Takes] = []
    if holds_images(rows):
        found.append("image")
    elif _text_columns(rows):
        found.append("text")
    if _numbers(rows):
        found.append("features")
    if len(found) == 1:
        return found[0]
    raise JobError(
        "which columns does the model see? --set source.image_column, text_column or features; "
        f"there are {names_of(rows.column_names)}"
    )


def _image(rows: pa.Table) -> Fields:
    for field, found, more in (
        ("image_column", _images(rows), {}),
        ("image_column", _base64(rows), {"image_encoding": ("base64", "as text")}),
        ("uri_column", _uris(rows), {}),
    ):
        if found:
            return {field: (_one(found, field, "image"), "the only one with images"), **more}
    raise _none(rows, "image")


def _texts(rows: pa.Table, *, is_pair: bool) -> Fields:
    found = _text_columns(rows)
    if is_pair:
        if len(found) != 2:
            raise JobError(
                "which two columns are the pair of texts? --set source.text_column=... --set "
                f"source.text_pair_column=...; there are {names_of(found) or 'none'}"
            )
        return {
            "text_column": (found[0], "the first of two with texts"),
            "text_pair_column": (found[1], "the second one"),
        }
    usual = [name for name in found if name.lower() in _TEXTS]
    if len(found) > 1 and len(usual) == 1:
        others = names_of([name for name in found if name not in usual])
        return {"text_column": (usual[0], f"also texts: {others}")}
    if not found:
        raise _none(rows, "text")
    return {"text_column": (_one(found, "text_column", "text"), "the only one with texts")}


def _features(rows: pa.Table, names: Sequence[str]) -> Fields:
    if names:
        missing = [name for name in names if name not in rows.column_names]
        if missing:
            raise JobError(
                f"the model takes columns by name, and there is no {names_of(missing)}; there are "
                f"{names_of(rows.column_names)}"
            )
        return {"features": ([*names], "the model takes them by name")}
    found = _numbers(rows)
    if not found:
        raise _none(rows, "features")
    return {"features": (found, "all with numbers, in this order")}


def _one(found: Sequence[str], field: str, takes: Takes) -> str:
    if len(found) > 1:
        question = f"which column has the {takes}"
        raise Ambiguous.of(question, f"source.{field}", found, names_of(found))
    return found[0]


def _none(rows: pa.Table, takes: Takes) -> JobError:
    return JobError(
        f"the model takes {takes}, and no column holds {_OTHER[takes]}: there are "
        f"{names_of([f'{field.name} ({field.type})' for field in rows.schema])}"
    )


def _first(rows: pa.Table, name: str) -> Any:
    """Return the first value of a column that is not null; None if there is none."""
    column = rows.column(name)
    if pa.types.is_struct(column.type):
        index = column.type.get_field_index("bytes")
        if index < 0:
            return None
        column = pc.struct_field(column, index)
    return next((value.as_py() for value in column if value.is_valid), None)


def _images(rows: pa.Table) -> list[str]:
    def fits(field: pa.Field) -> bool:
        if not (is_binary(field.type) or pa.types.is_struct(field.type)):
            return False
        value = _first(rows, field.name)
        return isinstance(value, bytes) and identify(value) is not None

    return [field.name for field in rows.schema if fits(field)]


def _base64(rows: pa.Table) -> list[str]:
    def fits(name: str) -> bool:
        value = _first(rows, name)
        if not isinstance(value, str) or not value.isascii():
            return False
        decoded = decode_base64(memoryview(value.encode()), name, _LIMIT_BYTES)
        return isinstance(decoded, bytes) and identify(decoded) is not None

    return [field.name for field in rows.schema if is_text(field.type) and fits(field.name)]


def _uris(rows: pa.Table) -> list[str]:
    def fits(name: str) -> bool:
        value = _first(rows, name)
        is_line = isinstance(value, str) and len(value.split()) == 1
        return is_line and value.lower().partition("?")[0].endswith(ImageFiles.suffixes)

    return [field.name for field in rows.schema if is_text(field.type) and fits(field.name)]


def _text_columns(rows: pa.Table) -> list[str]:
    """Return the columns of texts, without ids and without what stands for images."""
    taken = {*_base64(rows), *_uris(rows), *(value for value, _ in choose_id(rows).values())}
    return [field.name for field in rows.schema if is_text(field.type) and field.name not in taken]


def _numbers(rows: pa.Table) -> list[str]:
    """Return the columns of numbers or of lists of them, without ids."""
    taken = {value for value, _ in choose_id(rows).values()}

    def fits(kind: pa.DataType) -> bool:
        is_list = pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)
        return is_number(kind.value_type if is_list else kind)

    return [field.name for field in rows.schema if fits(field.type) and field.name not in taken]
