"""The section of the report on texts: tokens, padding, and rows that were cut."""

from __future__ import annotations

from pipeline.core.figures.slice_figures import Tokens
from pipeline.report.sections import Section
from pipeline.report.speed.limits import Load
from pipeline.report.speed.performance import ratio


class Texts(Section):
    """Tokens of the texts that this run computed."""

    tokens: int
    """Of predicted rows, special tokens included, padding not."""
    tokens_per_row: float | None
    tokens_per_s: float | None
    """Over the streaming wall."""
    padding_pct: float | None
    """Share of what the model computed that was padding."""
    truncated_rows: int
    """Rows that had more tokens than `text.max_tokens`, and were cut."""
    truncated_pct: float | None
    """Of all rows that were tokenised."""


def texts_of(load: Load) -> Texts | None:
    """Return the section; None if no texts were tokenised."""
    rows, tokens = load.figures.tokenised, load.figures.tokens or Tokens()
    if rows is None:
        return None
    padding = ratio(tokens.num_padded - tokens.num_tokens, tokens.num_padded)
    cut = ratio(rows.num_truncated, rows.num_rows)
    return Texts(
        tokens=tokens.num_tokens,
        tokens_per_row=load.tokens_per_row,
        tokens_per_s=ratio(tokens.num_tokens, load.streaming_wall_s),
        padding_pct=None if padding is None else 100 * padding,
        truncated_rows=rows.num_truncated,
        truncated_pct=None if cut is None else 100 * cut,
    )
