"""The reference of the job file, made from its schema; run as a program, it writes the page.

`make reference` writes jobs/reference.md again after a change of a field.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from pipeline.core.registry import SOURCES, built_in, load
from pipeline.job.job import Job
from pipeline.job.source import Source

PAGE = Path(__file__).parents[3] / "jobs" / "reference.md"
MAX_COLUMNS = 100
HEAD = """# Fields of the job file

Written by `make reference` from the schema of the job file, which `pipeline schema` prints as JSON.
[The guide](README.md) says how the fields work together. `-` means that a field has no default of
its own: its meaning says what happens without it."""
FORMATS = """## Fields of a format

Some fields of `source` belong to certain formats; any other format refuses them."""
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "mapping"}
_SIGNS = ((Ge, ">=", "ge"), (Gt, ">", "gt"), (Le, "<=", "le"))


def reference() -> str:
    """Return the page: a heading and a table for each section, then the formats."""
    parts = [HEAD]
    for name, field in Job.model_fields.items():
        parts += [f"## `{name}`", _wrapped(_meaning(field.annotation))]
        parts += _tables(field.annotation, set())
    parts += [FORMATS, _formats()]
    for name in built_in(SOURCES):
        if options := load(SOURCES, name).Options:
            parts += [f"### `source.options` of `{name}`", *_tables(options, set())]
    # Descriptions link to the guide as if they stood in it.
    return re.sub(r"\]\(#", "](README.md#", "\n\n".join(parts)) + "\n"


def _formats() -> str:
    formats = {name: load(SOURCES, name) for name in built_in(SOURCES)}
    fields_of: dict[str, list[str]] = {}
    for field in Source.model_fields:
        names = ", ".join(name for name, given in formats.items() if field in given.fields)
        fields_of.setdefault(names, []).append(f"`{field}`")
    fields_of.pop("", None)  # the fields of every format
    rows = [f"| {names} | {', '.join(fields)} |" for names, fields in fields_of.items()]
    return "\n".join(["| formats | fields |", "|---|---|", *rows])


def _tables(model: Any, shown: set[Any]) -> Iterator[str]:
    """Yield the table of a section, and those of sections in it that are not in `shown`."""
    lines = ["| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        cells = (f"`{field.alias or name}`", field_type(field), _default(field))
        meaning = " ".join((field.description or "").split())
        lines.append(f"| {' | '.join(cells)} | {meaning} |")
    yield "\n".join(lines)
    for name, field in model.model_fields.items():
        for nested in filter(_is_section, _flat(field.annotation)):
            if nested in shown:
                continue
            shown.add(nested)
            alike = [n for n, f in model.model_fields.items() if f.annotation == field.annotation]
            names = " and ".join(f"`{other}`" for other in alike)
            is_list = get_origin(field.annotation) is tuple
            about = f"Each of `{name}`:" if is_list else f"{names}: {_meaning(nested)}"
            is_alike = all(f.description.startswith("See `") for f in nested.model_fields.values())
            if is_alike:
                about += f" It has these fields, as above: {', '.join(nested.model_fields)}."
            yield _wrapped(about)
            if not is_alike:
                yield from _tables(nested, shown)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, MAX_COLUMNS, break_long_words=False, break_on_hyphens=False)


def _flat(annotation: Any) -> Iterator[Any]:
    """Yield a type and the types that it is made of."""
    yield annotation
    for inner in get_args(annotation):
        yield from _flat(inner)


def _meaning(section: Any) -> str:
    return " ".join((section.__doc__ or "").split())


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def field_type(field: FieldInfo) -> str:
    """Name the type of a field with its range, as in `integer >= 1`."""
    return _type_name(field.annotation) + _range(field.metadata)


def _type_name(annotation: Any) -> str:
    if _is_section(annotation):
        return _TYPES[dict]
    if annotation in _TYPES:
        return _TYPES[annotation]
    arguments = [item for item in get_args(annotation) if item is not type(None)]
    match get_origin(annotation):
        case origin if origin in (UnionType, Union):
            return " or ".join(map(_type_name, arguments))
        case origin if origin is Literal:
            return " or ".join(f"`{choice}`" for choice in arguments)
        case origin if origin is tuple:
            item = _type_name(arguments[0])
            items = re.sub(rf"\b({'|'.join(_TYPES.values())})\b", r"\1s", item)
            return f"list of {items}" if arguments[-1] is ... else f"{len(arguments)} {items}"
        case origin if origin is dict:
            return _TYPES[dict]
    inner, *metadata = arguments  # Annotated
    bounds = [part for item in metadata for part in getattr(item, "metadata", [item])]
    return _type_name(inner) + _range(bounds)


def _range(constraints: Sequence[Any]) -> str:
    """Show the range of a number; the meaning gives lengths and patterns of strings."""
    bounds = [
        f" {sign} {getattr(constraint, name):g}"
        for constraint in constraints
        for constraint_class, sign, name in _SIGNS
        if isinstance(constraint, constraint_class)
    ]
    return ",".join(bounds)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        return "see below"
    return "-" if default is None else f"`{json.dumps(default)}`"


if __name__ == "__main__":
    PAGE.write_text(reference(), "ascii")
