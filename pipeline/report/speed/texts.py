"""The section of the report on texts: tokens, padding, and rows that were cut."""

from __future__ import annotations

from pipeline.core.figures.counters import TOKENS, TRUNCATED_ROWS, StageCounters
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
    if TRUNCATED_ROWS not in load.counters:
        return None
    tokens = StageCounters.from_dict(load.counters.get(TOKENS, {}))
    rows = StageCounters.from_dict(load.counters[TRUNCATED_ROWS])
    padding = ratio(tokens.rows_out - tokens.rows_in, tokens.rows_out)
    cut = ratio(rows.rows_out, rows.rows_in)
    return Texts(
        tokens=tokens.rows_in,
        tokens_per_row=load.tokens_per_row,
        tokens_per_s=ratio(tokens.rows_in, load.streaming_wall_s),
        padding_pct=None if padding is None else 100 * padding,
        truncated_rows=rows.rows_out,
        truncated_pct=None if cut is None else 100 * cut,
    )
