"""Say how predictions differ from what is known of the same rows. Pure: takes published columns.

Columns of numbers are compared as the results of a task are; others by equality, with the numbers
inside them within a relative error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.printable import clean_message
from pipeline.models.agreement import Agreement, AgreementLimits

Values = npt.NDArray[Any]
Compare = Callable[[dict[str, Values], dict[str, Values], AgreementLimits], Agreement]
_SHOWN_CHARS = 60


def column_differences(
    known: pa.Table, actual: pa.Table, limits: AgreementLimits, compare: Compare
) -> list[str]:
    """Say per row how predicted columns differ from the known ones; '' where they agree.

    Args:
        known: N rows.
        actual: The same rows, with at least these columns.
        limits: How far numbers may be off.
        compare: `Task.compare`; gets columns of numbers, or of lists of one length of them, as
            float64 (N, ...), by their names.
    """
    differences, sides = [""] * known.num_rows, (dict[str, Values](), dict[str, Values]())
    for name in known.column_names:
        pair = as_array(known.column(name)), as_array(actual.column(name))
        if all(_is_plain(column) for column in pair):
            sides[0][name], sides[1][name] = _comparable(*map(_numbers, pair))
            continue
        for row, (a, b) in enumerate(zip(*(column.to_pylist() for column in pair), strict=True)):
            if not differences[row] and not _alike(a, b, limits.max_relative_error):
                differences[row] = f"expected {name} {_shown(a)}, found {_shown(b)}"
    differing = np.flatnonzero(~compare(*sides, limits).agrees).tolist() if sides[0] else []
    sizes = _sizes(sides[0]) if differing else {}
    for row in differing:
        differences[row] = differences[row] or _worst_number(*sides, row, sizes)
    return differences


def entry_differences(
    known: Mapping[str, float | None],
    actual: Mapping[str, float],
    least: tuple[float, float],
    limit: float,
) -> list[str]:
    """Say how the scored labels of a row differ.

    Args:
        known: Label -> its score; None: any.
        actual: The same of the other side.
        least: The score that a label has at most if the known, the predicted side does not list it.
        limit: How far a score may be off.
    """
    differences = []
    for label, score in known.items():
        now = actual.get(label)
        is_near = now is not None if score is None else _is_near(score, now, least[1], limit)
        if not is_near:
            shown = "none" if now is None else f"{now:.4f}"
            differences.append(
                f"expected {label!r}{'' if score is None else f' {score:.4f}'}, found {shown}"
            )
    for label, score in actual.items():
        if label not in known and not score - least[0] <= limit:
            differences.append(f"expected no {label!r}, found {score:.4f}")
    return differences


def _is_near(score: float, now: float | None, least: float, limit: float) -> bool:
    return score - least <= limit if now is None else abs(score - now) <= limit


def _is_plain(column: pa.Array) -> bool:
    """Tell whether a column is of floats, or of lists of one length of them, without nulls."""
    dtype = column.type
    while pa.types.is_fixed_size_list(dtype):
        dtype = dtype.value_type
    return bool(pa.types.is_floating(dtype)) and not column.null_count


def _numbers(column: pa.Array) -> Values:
    """Return float64 (N, size)."""
    shape = [len(column), 1]
    while pa.types.is_fixed_size_list(column.type):
        shape[1] *= column.type.list_size
        column = column.flatten()
    return np.asarray(column.to_numpy(zero_copy_only=False), np.float64).reshape(shape)


def _comparable(a: Values, b: Values) -> tuple[Values, Values]:
    """Return both with 0 where neither is finite and both are the same, which has no distance."""
    if np.isfinite(a).all() and np.isfinite(b).all():
        return a, b
    same = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    return np.where(same, 0.0, a), np.where(same, 0.0, b)


def _sizes(columns: Mapping[str, Values]) -> dict[str, float]:
    """Return the largest finite number of each column, 1 where that is 0."""
    finite = {name: np.where(np.isfinite(values), values, 0.0) for name, values in columns.items()}
    return {name: float(np.abs(values).max(initial=0.0)) or 1.0 for name, values in finite.items()}


def _worst_number(
    known: Mapping[str, Values],
    actual: Mapping[str, Values],
    row: int,
    sizes: Mapping[str, float],
) -> str:
    """Show the number of a row that is off most for its column."""
    shown: list[tuple[float, str]] = [(-1.0, "other numbers than expected")]
    for name, values in known.items():
        a, b = values[row], actual[name][row]
        off = np.nan_to_num(np.abs(a - b), nan=np.inf)
        if off.size:
            place = int(off.argmax())
            at = f"[{place}]" if off.size > 1 else ""
            text = f"expected {name}{at} {a[place]:.6g}, found {b[place]:.6g}"
            shown.append((float(off[place]) / sizes[name], text))
    return max(shown)[1]


def _alike(a: Any, b: Any, limit: float, usual: float = 0.0) -> bool:
    """Compare two values of Python; numbers in a list relative to the largest one of it."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (a != a and b != b) or abs(a - b) <= limit * max(abs(a), usual)
    if isinstance(a, list) and isinstance(b, list):
        largest = max((abs(item) for item in a if isinstance(item, float)), default=0.0)
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_alike(x, y, limit, largest) for x, y in pairs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key], limit) for key in a)
    return bool(a == b)


def _shown(value: Any) -> str:
    text = clean_message(repr(value))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
