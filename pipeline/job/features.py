"""The job file's `source.features` and `source.inputs`: the columns of an input."""

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
    """Return a category as it is compared: whole numbers and true or false as their text."""
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
    """A column of `features` that is more than numbers as they are."""

    column: str = Field(min_length=1)
    """The column; of a shard, or of the names of its folders (`year=2026/`)."""
    categories: Categories | None = None
    """The values that there are, in the order that the model was trained with: a list, or the URI
    of a file with one a line or a JSON list. For columns of text, whole numbers, or true and false;
    compared as text. An empty text is a value like others, a null is none."""
    unknown: Literal["quarantine", "own", "zero"] = "quarantine"
    """What a value means that is no category: the row is quarantined as `bad_schema`; it has an
    index, or a 0-or-1 feature, of its own behind the others; or all are 0 (`one_hot` only)."""
    encoding: Literal["one_hot", "index"] = "one_hot"
    """A category becomes a feature for each that there is, 1 for its own and 0 for the others; or
    one feature, its place in the list from 0 on."""
    read_as: ReadAs | None = None
    """What becomes of a date or time: whole `seconds` or `days` since `origin`, or a part of it;
    `weekday` is 0 on Monday. Of a column with a time zone the parts are local, others in UTC. Times
    of day have `seconds` and `hour`. In columns of text a date is `2026-01-31`, a
    time `2026-01-31T12:00:30` with up to 6 digits of a second and `Z`, `+01:00` or no zone; other
    forms of ISO 8601, such as `20260131`, are none. `float64` and `text` are for an `.onnx` file
    with an input per column, and said for it by what the file takes: a number as float64, which
    holds whole numbers up to 9,007,199,254,740,992, or a text as it is."""
    origin: str | None = None
    """A date or time in UTC, left out 1970-01-01. Seconds beyond 16,777,216 (194 days) are refused
    as other whole numbers are, see `lossy_features`: choose one near the data."""
    null: Null | None = None
    """What a null means in this column, in place of `null_features`; also `unknown`, as a value
    that is no category, or the number that stands in its place."""

    @property
    def is_category(self) -> bool:
        """Tell whether values are categories."""
        return self.categories is not None

    @property
    def part(self) -> Part | None:
        """Return what of a date or time becomes the number; None: it is none."""
        return None if self.read_as == "float64" or self.read_as == "text" else self.read_as

    @property
    def is_text(self) -> bool:
        """Tell whether the values stay texts."""
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
            raise ValueError("read_as makes numbers: leave it out, or categories")
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
            raise ValueError("unknown: zero is the index of the first category; give own")

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
            raise ValueError("null: a text has no value in place of a null; leave it out")
        if self.null == "unknown" and not self.is_category:
            raise ValueError("null: unknown has no effect without categories")
        if isinstance(self.null, float):
            if self.is_category:
                raise ValueError("null is a number, and the column has categories: give unknown")
            if abs(self.null) > 3.4e38:
                raise ValueError("null is too large for float32")
        if self.null == "zero" and self.encoding == "index":
            raise ValueError("null: zero is the index of the first category; give unknown")


FeatureEntry = Annotated[
    Annotated[str, TEXT] | Annotated[FeatureColumn, MAPPING],
    by_form("a valid string or an object"),
]
"""A column of numbers as they are, by its name, or one with what becomes of its values."""


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
"""Field -> the field without which it has no effect."""


class SourceInput(Section):
    """Which columns hold this input: give one of `image_column`, `audio_column`, `uri_column`,
    `text_column` and `features`."""

    image_column: str | None = Field(default=None, min_length=1)
    """As `source.image_column`."""
    image_encoding: Literal["binary", "base64"] = "binary"
    """As `source.image_encoding`."""
    audio_column: str | None = Field(default=None, min_length=1)
    """As `source.audio_column`."""
    audio_encoding: Literal["binary", "base64"] = "binary"
    """As `source.audio_encoding`."""
    uri_column: str | None = Field(default=None, min_length=1)
    """As `source.uri_column`; what may be fetched is said once, in `source`."""
    text_column: str | None = Field(default=None, min_length=1)
    """As `source.text_column`."""
    text_pair_column: str | None = Field(default=None, min_length=1)
    """As `source.text_pair_column`."""
    features: tuple[FeatureEntry, ...] = ()
    """As `source.features`."""
    null_features: Literal["quarantine", "zero", "nan"] = "quarantine"
    """As `source.null_features`."""
    lossy_features: bool = False
    """As `source.lossy_features`."""

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
    """Return which of the names of inputs cannot be one, and why; '' if all can be."""
    for name in names:
        is_argument = name.isascii() and name.isidentifier() and not keyword.iskeyword(name)
        if not is_argument or name.startswith("_") or name.endswith("_") or "__" in name:
            return (
                f"{name!r}: a name of an input is that of an argument of the model's forward: "
                "ASCII letters, digits and single _ between them"
            )
    return ""
