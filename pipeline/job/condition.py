"""Conditions on rows: `source.where`, a subset of SQL that the library sqlglot parses.

`not` is pushed into the comparisons, so that a row is chosen by comparisons joined with `and` and
`or` alone. In SQL a comparison with null is null, and only rows for which the whole is true are
chosen: after that step null and false make no difference.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

ALLOWED = (
    "allowed are comparisons of a column with a value (=, <>, <, <=, >, >=), in, between, is null, "
    "and, or, not; values: 'text', 1.5, true, date '2026-11-24', timestamp '2026-11-24 10:00:00'"
)
Node = Any
"""A node of the tree that the library parses."""
Value = bool | int | Decimal | str | dt.date | dt.datetime
Op = Literal["in", "not in", "<", "<=", ">", ">=", "is null", "is not null"]
_OPPOSITE: dict[Op, Op] = {
    **{"in": "not in", "<": ">=", ">": "<=", "is null": "is not null"},
    **{"not in": "in", ">=": "<", "<=": ">", "is not null": "is null"},
}
_MIRRORED: dict[Op, Op] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_SIGNS = {"EQ": "in", "NEQ": "not in", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_ZONE = re.compile(r"(Z|[+-]\d\d(:?\d\d)?)$")


@dataclass(frozen=True)
class Comparison:
    """A comparison of a column with values."""

    column: str
    """Its name, or the path of a field: `column.field`."""
    op: Op
    """`=` is `in` one value, and `<>` is `not in` one."""
    values: tuple[Value, ...] = ()

    def __str__(self) -> str:
        name, values = '"' + self.column.replace('"', '""') + '"', [*map(text_of, self.values)]
        if self.op not in ("in", "not in"):
            return " ".join([name, self.op, *values])
        if len(values) == 1:
            return f"{name} {'=' if self.op == 'in' else '<>'} {values[0]}"
        return f"{name} {self.op} ({', '.join(values)})"


@dataclass(frozen=True)
class Junction:
    """Conditions of which all or one must be true."""

    word: Literal["and", "or"]
    parts: tuple[Condition, ...]

    def __str__(self) -> str:
        return f" {self.word} ".join(
            f"({part})" if isinstance(part, Junction) else str(part) for part in self.parts
        )


Condition = Comparison | Junction


def columns_in(condition: Condition) -> list[str]:
    """Return the columns of a condition, each once."""
    return [*values_in(condition)]


def values_in(condition: Condition) -> dict[str, list[Value]]:
    """Return the columns of a condition, each with the values that it is compared with."""
    if isinstance(condition, Comparison):
        return {condition.column: [*condition.values]}
    values: dict[str, list[Value]] = {}
    for part in condition.parts:
        for column, compared in values_in(part).items():
            values.setdefault(column, []).extend(compared)
    return values


def text_of(value: Value) -> str:
    """Return a value as SQL has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, dt.datetime):
        return f"timestamp '{value.isoformat(' ')}'"
    return f"date '{value}'" if isinstance(value, dt.date) else str(value)


@functools.lru_cache(64)
def parse(text: str) -> Condition:
    """Parse a condition.

    Raises:
        ValueError: It is no condition, or more than this subset of SQL; the message names the
            piece and what is allowed.
    """
    try:
        import sqlglot
        from sqlglot.errors import SqlglotError
    except ImportError as error:
        raise ValueError(
            "needs the extra: pip install 'batch-inference-pipeline[where]'"
        ) from error
    try:
        roots = sqlglot.parse(text, dialect="duckdb")
        [root] = roots if len(roots) == 1 else [None]
        if root is None:
            raise ValueError(f"{text!r} is not one condition; {ALLOWED}")
        return _condition(root, is_negated=False)
    except SqlglotError as error:
        [first, *_] = getattr(error, "errors", None) or [{"description": str(error), "col": "?"}]
        raise ValueError(f"{first['description']}, at character {first['col']}") from None
    except RecursionError:
        raise ValueError("is nested too deeply; write many values as `in (...)`") from None


def _condition(node: Node, *, is_negated: bool) -> Condition:
    name = type(node).__name__
    if name == "Paren":
        return _condition(node.this, is_negated=is_negated)
    if name == "Not":
        return _condition(node.this, is_negated=not is_negated)
    if name in ("And", "Or"):
        parts = [_condition(part, is_negated=is_negated) for part in node.flatten()]
        return _joined("and" if (name == "And") != is_negated else "or", parts)
    if name == "Between" and not node.args.get("symmetric"):
        ends: tuple[tuple[Op, str], ...] = ((">=", "low"), ("<=", "high"))
        tests = [_comparison(op, node.this, [node.args[end]], is_negated) for op, end in ends]
        return _joined("or" if is_negated else "and", tests)
    if name == "In" and node.expressions and not any(map(node.args.get, ("query", "field"))):
        return _comparison("in", node.this, node.expressions, is_negated)
    if name == "Is" and type(node.expression).__name__ == "Null":
        return _comparison("is null", node.this, [], is_negated)
    if name in _SIGNS:
        op: Any = _SIGNS[name]
        if _column(node.this) is None and _column(node.expression) is not None:
            return _comparison(_MIRRORED.get(op, op), node.expression, [node.this], is_negated)
        return _comparison(op, node.this, [node.expression], is_negated)
    if (column := _column(node)) is not None:
        return Comparison(column, "in", (not is_negated,))
    raise _refused(node)


def _joined(word: Literal["and", "or"], parts: Sequence[Condition]) -> Condition:
    """Return a junction without junctions of the same word in it."""
    flat = [
        inner
        for part in parts
        for inner in (part.parts if isinstance(part, Junction) and part.word == word else (part,))
    ]
    return Junction(word, tuple(flat))


def _comparison(op: Op, column: Node, values: Sequence[Node], is_negated: bool) -> Comparison:
    name = _column(column)
    if name is None:
        raise _refused(column)
    return Comparison(name, _OPPOSITE[op] if is_negated else op, tuple(map(_value, values)))


def _column(node: Node) -> str | None:
    """Return the name of a column or the path of a field; None for anything else."""
    if type(node).__name__ not in ("Column", "Dot"):
        return None
    parts = node.parts
    is_name = all(type(part).__name__ == "Identifier" for part in parts)
    return ".".join(part.name for part in parts) if is_name else None


def _value(node: Node) -> Value:
    name = type(node).__name__
    if name == "Boolean":
        return bool(node.this)
    if name == "Literal":
        return str(node.this) if node.is_string else _number(node)
    if name == "Neg" and type(node.this).__name__ == "Literal" and not node.this.is_string:
        return -_number(node.this)
    if name == "Cast" and type(node.this).__name__ == "Literal" and node.this.is_string:
        named, value = node.args["to"].this.name, time_of(str(node.this.this))
        if named.startswith("TIMESTAMP") or (named == "DATE" and type(value) is dt.date):
            return value
    raise _refused(node)


def _number(node: Node) -> int | Decimal:
    text = str(node.this)
    return int(text) if text.isdecimal() else Decimal(text)


def time_of(text: str) -> dt.date:
    """Return a date `2026-11-24`, or a time `2026-11-24 10:00:00` in up to microseconds.

    Raises:
        ValueError: The text is neither.
    """
    has_zone = _ZONE.search(text)
    fraction = text[: has_zone.start() if has_zone else None].partition(".")[2]
    with contextlib.suppress(ValueError):
        if len(fraction) <= len("000001"):  # Python would cut it
            is_date = len(text) <= len("2026-11-24")
            return (dt.date if is_date else dt.datetime).fromisoformat(text)
    raise ValueError(f"{text!r} is no date or time, as '2026-11-24' and '2026-11-24 10:00:00' are")


def _refused(node: Node) -> ValueError:
    return ValueError(f"{node.sql(dialect='duckdb')[:80]} is not supported here; {ALLOWED}")
