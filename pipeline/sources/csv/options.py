"""What a job says of its CSV in `source.options`."""

from __future__ import annotations

import csv
from typing import Annotated, Any

from pydantic import Field, model_validator

from pipeline.job.section import Section

Character = Annotated[str, Field(pattern=r"^[^\r\n]$")]


class CsvOptions(Section):
    """How the shards are written."""

    delimiter: Character | None = None
    """What is between fields: one character; left out, a tab in `.tsv`, otherwise a comma."""
    quote: Character | None = '"'
    """What is around fields that hold a delimiter, a quote or a line end; doubled inside them.
    `null`: quotes are characters like others."""
    escape: Character | None = None
    """What takes its meaning from the next character, in quotes and outside; left out: none."""
    nulls: tuple[str, ...] = ("",)
    """Fields that are null, quoted or not. `[]`: an empty field is an empty text."""
    columns: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """The names of the columns, in order, of shards without a header; left out, the first record of
    each shard has them."""

    @model_validator(mode="after")
    def _differ(self) -> CsvOptions:
        given = [self.delimiter or ",", self.quote, self.escape]
        if len({each for each in given if each}) < sum(map(bool, given)):
            raise ValueError("delimiter, quote and escape must differ")
        if self.columns and len(set(self.columns)) < len(self.columns):
            raise ValueError("columns: name each column once")
        return self

    def dialect(self, path: str) -> dict[str, Any]:
        """Return the arguments of `csv.reader` for a shard."""
        is_tsv = ".tsv" in path.lower().rpartition("/")[2]
        return {
            "delimiter": self.delimiter or ("\t" if is_tsv else ","),
            "quotechar": self.quote,
            "quoting": csv.QUOTE_NONE if self.quote is None else csv.QUOTE_MINIMAL,
            "escapechar": self.escape,
            "strict": True,
        }
