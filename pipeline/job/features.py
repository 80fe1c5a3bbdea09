"""Fields `source.features` and `source.inputs` of the job file: the columns of an input."""

from __future__ import annotations

import datetime as dt
import keyword
from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from pipeline.core.media import ENCODED
from pipeline.job.section import LIST, MAPPING, NUMBER, TEXT, Section, by_form

Part = Literal["seconds", "days", "year", "month", "day", "weekday", "hour"]
ReadAs = Literal["seconds", "days", "year", "month", "day", "weekday", "hour", "float64", "text"]
_FIELDS_OF_CATEGORIES = ("unknown", "encoding")
_SINCE = ("seconds", "days")


def _as_text(value: object) -> object:
    """Return a category as text: integers and booleans as they are written in YAML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else value


Category = Annotated[str, BeforeValidator(_as_text)]
Categories = Annotated[
    Annotated[tuple[Category, ...], LIST] | Annotated[str, TEXT],
    by_form("a valid string or a valid array"),
]
Null = Annotated[
    Annotated[Literal["quarantine", "zero", "nan", "unknown"], TEXT] | Annotated[float, NUMBER],
    by_form("'quarantine', 'zero', 'nan', 'unknown' or a number"),
]


class FeatureColumn(Section):
    """A column of `features` that needs more than its numbers."""

    column: str = Field(min_length=1)
    """Name of the column in the shards, or in the names of their folders (`year=2026/`)."""
    categories: Categories | None = None
    """The categories, in the order used for training: a list, or the URI of a file with one per
    line or with a JSON list. For columns of text, integers and booleans, which are compared as
    text. An empty text is a category like others; a null is none."""
    unknown: Literal["quarantine", "own", "zero"] = "quarantine"
    """Treatment of a value that is no category: `quarantine` the row as `bad_schema`; `own`: an
    index, or a 0-or-1 feature, after all others; `zero`: all features are 0 (`one_hot` only)."""
    encoding: Literal["one_hot", "index"] = "one_hot"
    """`one_hot`: one feature per category, 1 for the matching one and 0 for the others. `index`:
    one feature, the position in the list, from 0."""
    read_as: ReadAs | None = None
    """Number taken from a date or time: whole `seconds` or `days` since `origin`, or one part of
    it; `weekday` is 0 on Monday. Parts are local for columns with a time zone, and UTC for others.
    Times of day have `seconds` and `hour`. In columns of text, a date is `2026-01-31` and a time
    `2026-01-31T12:00:30`, with up to 6 digits of a second and `Z`, `+01:00` or no zone; other forms
    of ISO 8601, such as `20260131`, are invalid. `float64` and `text` are for an `.onnx` file with
    one input per column, and set automatically by its input types: a number as float64, exact for
    integers up to 9,007,199,254,740,992, or a text unchanged."""
    origin: str | None = None
    """A date or time in UTC. Default: 1970-01-01. Seconds beyond 16,777,216 (194 days) are refused
    like other integers, see `lossy_features`: choose an origin near the data."""
    null: Null | None = None
    """Treatment of nulls in this column, instead of `null_features`: also `unknown`, to treat a
    null as a value that is no category, or a number to replace it."""

    @property
    def is_category(self) -> bool:
        """Tell whether the values are categories."""
        return self.categories is not None

    @property
    def part(self) -> Part | None:
        """Return the part of a date or time that becomes the number; None: it is neither."""
        return None if self.read_as == "float64" or self.read_as == "text" else self.read_as

    @property
    def is_text(self) -> bool:
        """Tell whether the values stay text."""
        return self.read_as == "text"

    @property
    def origin_at(self) -> dt.datetime:
        """Return the origin, in UTC."""
        origin = dt.datetime.fromisoformat(self.origin or "1970-01-01")
        return origin.replace(tzinfo=dt.UTC) if origin.tzinfo is None else origin.astimezone(dt.UTC)

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureColumn:
        """Refuse fields that have no effect, or contradict each other."""
        if self.read_as is not None and self.is_category:
            raise ValueError("give read_as or categories, not both")
        for name in _FIELDS_OF_CATEGORIES:
            if name in self.model_fields_set and not self.is_category:
                raise ValueError(f"{name} has no effect without categories")
        self._check_categories()
        self._check_times()
        self._check_null()
        return self

    def _check_categories(self) -> None:
        if isinstance(self.categories, tuple):
            if not self.categories:
                raise ValueError("categories must name at least one value")
            if len(set(self.categories)) < len(self.categories):
                raise ValueError("name each of categories once")
        if self.encoding == "index" and self.unknown == "zero":
            raise ValueError("unknown: zero would mean the first category, an index; give own")

    def _check_times(self) -> None:
        if self.origin is None:
            return
        if self.read_as not in _SINCE:
            raise ValueError("origin has no effect without read_as: seconds or days")
        try:
            self.origin_at  # noqa: B018  # parsed
        except ValueError:
            raise ValueError(
                f"origin = {self.origin}: write 2026-01-31 or 2026-01-31T12:00:00"
            ) from None

    def _check_null(self) -> None:
        if self.is_text and self.null not in (None, "quarantine"):
            raise ValueError("null has no effect with read_as: text; remove it")
        if self.null == "unknown" and not self.is_category:
            raise ValueError("null: unknown has no effect without categories")
        if isinstance(self.null, float):
            if self.is_category:
                raise ValueError("null cannot be a number in a column of categories; give unknown")
            if abs(self.null) > 3.4e38:
                raise ValueError("null is too large for float32")
        if self.null == "zero" and self.encoding == "index":
            raise ValueError("null: zero would mean the first category, an index; give unknown")


FeatureEntry = Annotated[
    Annotated[str, TEXT] | Annotated[FeatureColumn, MAPPING],
    by_form("a valid string or an object"),
]
"""The name of a column of numbers, or a column with its treatment."""


def column_of(entry: FeatureEntry) -> str:
    """Return the column of an entry of `features`."""
    return entry if isinstance(entry, str) else entry.column


_INPUT_FIELDS = (*(f"{name}_column" for name in ENCODED), "uri_column", "text_column", "features")
_NEEDS = {
    **{f"{name}_encoding": f"{name}_column" for name in ENCODED},
    "text_pair_column": "text_column",
    "null_features": "features",
    "lossy_features": "features",
}
"""Field -> the field that it needs to have an effect."""


class SourceInput(Section):
    """Columns of one input. Give one of `image_column`, `audio_column`, `uri_column`, `text_column`
    and `features`."""

    image_column: str | None = Field(default=None, min_length=1)
    """See `source.image_column`."""
    image_encoding: Literal["binary", "base64"] = "binary"
    """See `source.image_encoding`."""
    audio_column: str | None = Field(default=None, min_length=1)
    """See `source.audio_column`."""
    audio_encoding: Literal["binary", "base64"] = "binary"
    """See `source.audio_encoding`."""
    uri_column: str | None = Field(default=None, min_length=1)
    """See `source.uri_column`; what may be fetched is set once, in `source`."""
    text_column: str | None = Field(default=None, min_length=1)
    """See `source.text_column`."""
    text_pair_column: str | None = Field(default=None, min_length=1)
    """See `source.text_pair_column`."""
    features: tuple[FeatureEntry, ...] = ()
    """See `source.features`."""
    null_features: Literal["quarantine", "zero", "nan"] = "quarantine"
    """See `source.null_features`."""
    lossy_features: bool = False
    """See `source.lossy_features`."""

    @model_validator(mode="after")
    def _of_one_input(self) -> SourceInput:
        given = [name for name in _INPUT_FIELDS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_INPUT_FIELDS[:-1])} and {_INPUT_FIELDS[-1]}")
        for name, needed in _NEEDS.items():
            if name in self.model_fields_set and needed not in given:
                raise ValueError(f"{name} has no effect without {needed}")
        return self


def name_trouble(names: Iterable[str]) -> str:
    """Return why one of the names of inputs is invalid; '' if all are valid."""
    for name in names:
        is_argument = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        if not is_argument or name.startswith("_") or name.endswith("_") or "__" in name:
            return (
                f"{name!r}: an input has the name of an argument of the model's forward: ASCII "
                "letters, digits and single _ between them"
            )
    return ""
