"""The job file's section `source.inputs`: which columns hold one of several inputs of a row."""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, model_validator

from pipeline.core.schema import ENCODED
from pipeline.job.features import FeatureEntry
from pipeline.job.section import Section

_KINDS = (*(f"{kind}_column" for kind in ENCODED), "uri_column", "text_column", "features")
_NEEDS = {
    **{f"{kind}_encoding": f"{kind}_column" for kind in ENCODED},
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
    def _of_one_kind(self) -> SourceInput:
        given = [name for name in _KINDS if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(_KINDS[:-1])} and {_KINDS[-1]}")
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
