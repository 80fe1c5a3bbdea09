"""The job file's section `text`: how texts become tokens."""

from __future__ import annotations

from pydantic import Field

from pipeline.job.section import PositiveInt, Section


class Text(Section):
    """How texts become tokens; what is left out comes from the model directory."""

    max_tokens: PositiveInt | None = None
    """A row with more tokens, special ones included, is cut to this and marked as `truncated`;
    left out: what the model directory says."""
    prefix: str | None = Field(default=None, max_length=10_000)
    """Put before each text, as in `"query: "`; left out: the default prompt of the directory, which
    `""` leaves out."""
    tokenizer: str | None = None
    """URI of a `tokenizer.json`; left out: the one in the model directory."""
