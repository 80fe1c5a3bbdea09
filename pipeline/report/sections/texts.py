"""The tokens of a run: of texts that the model reads, and of texts that it writes."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.core.figures import PREFILL, Steps, Tokens
from pipeline.core.printable import num_of
from pipeline.report.sections import Section, ratio
from pipeline.report.sections.limits import Load
from pipeline.report.showing.blocks import Block, format_count, format_rate

if TYPE_CHECKING:
    from pipeline.report.document import Report


class Texts(Section):
    """Tokens of the texts that this run computed."""

    tokens: int
    """Of predicted rows, with special tokens, without padding."""
    tokens_per_row: float | None
    tokens_per_s: float | None
    """Over the streaming wall."""
    padding_pct: float | None
    """Share of what the model computed that was padding."""
    truncated_rows: int
    """Rows with more tokens than `text.max_tokens`, which were cut."""
    truncated_pct: float | None
    """Share of the tokenised rows."""


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


def text_lines(report: Report) -> list[str]:
    """Say in one line how long texts were, how much was padding, and how many were cut."""
    texts = report.texts
    if texts is None or not texts.tokens:
        return []
    parts = [f"{format_rate(texts.tokens_per_row)} tokens"]
    if texts.padding_pct is not None:
        parts.append(f"{texts.padding_pct:.1f}% of what the model computed was padding")
    if texts.truncated_rows:
        parts.append(f"{num_of(texts.truncated_rows, 'row')} cut ({texts.truncated_pct:.2g}%)")
    return [f"texts: a row has {', '.join(parts)}"]


class Written(Section):
    """Texts that this run wrote, quarantined ones included."""

    input_tokens: int
    """Of prompts, without padding."""
    output_tokens: int
    prefill_tokens_per_s: float | None
    """Tokens of prompts over the busy seconds of actors that read them."""
    decode_tokens_per_s: float | None
    """Tokens of outputs over the busy seconds of actors that wrote them."""
    rows_per_step: float | None
    """Mean rows of a batch, over the steps that write a token for each."""
    decode_padding_pct: float | None
    """Share of these rows that had ended already; they leave the batch together with others."""
    output_tokens_p50: int | None
    """Half of the outputs are not longer; exact to 3%."""
    output_tokens_p95: int | None
    length_pct: float | None
    """Share of outputs cut off at the most tokens: `finish_reason` is `length`."""
    repeating_pct: float | None
    """Share of outputs cut off so while they repeated the same few tokens."""
    cost_per_million_tokens: float | None = None
    """For both kinds of tokens, in the currency of `run.price_per_node_hour`."""


def written_of(load: Load, cost: float | None) -> Written | None:
    """Return the section; None if no texts were written.

    Args:
        load: The load of the run.
        cost: Of the run; None if unknown.
    """
    made = load.figures.generated
    if made is None:
        return None
    read = (load.figures.tokens or Tokens()).num_tokens
    shares = [ratio(number, made.num_rows) for number in (made.num_long, made.num_repeating)]
    steps = load.figures.steps or Steps()
    used = ratio(made.num_tokens, steps.num_places)
    a_token = None if cost is None else ratio(cost, read + made.num_tokens)
    return Written(
        input_tokens=read,
        output_tokens=made.num_tokens,
        prefill_tokens_per_s=ratio(read, load.figures.stage(PREFILL).busy_s),
        decode_tokens_per_s=ratio(made.num_tokens, made.busy_s),
        rows_per_step=ratio(steps.num_places, steps.num_steps),
        decode_padding_pct=None if used is None else 100 * (1 - used),
        output_tokens_p50=_quantile(load.figures.output_lengths, 0.5),
        output_tokens_p95=_quantile(load.figures.output_lengths, 0.95),
        length_pct=None if shares[0] is None else 100 * shares[0],
        repeating_pct=None if shares[1] is None else 100 * shares[1],
        cost_per_million_tokens=None if a_token is None else 1e6 * a_token,
    )


def _quantile(lengths: Mapping[str, int], share: float) -> int | None:
    """Return the length that this share of the outputs does not exceed."""
    counted = sorted((int(length), rows) for length, rows in lengths.items())
    sums = [*itertools.accumulate(rows for _, rows in counted)]
    return counted[bisect.bisect_left(sums, share * sums[-1])][0] if sums else None


def written_lines(report: Report) -> list[str]:
    """Say in one line how much was written, how fast, and what it cost."""
    made = report.written
    if made is None or not made.output_tokens:
        return []
    parts = [
        f"{format_count(made.input_tokens)} tokens read, {format_count(made.output_tokens)} written"
    ]
    if made.prefill_tokens_per_s and made.decode_tokens_per_s:
        parts.append(
            f"{format_rate(made.prefill_tokens_per_s)} and "
            f"{format_rate(made.decode_tokens_per_s)} tokens/s per actor while it did"
        )
    if made.rows_per_step and made.decode_padding_pct is not None:
        parts.append(
            f"{made.rows_per_step:.1f} rows at a step, {made.decode_padding_pct:.2g}% of them ended"
        )
    parts.append(f"half of the outputs have {made.output_tokens_p50} tokens or fewer")
    parts.append(f"95% {made.output_tokens_p95} or fewer")
    if made.length_pct:
        parts.append(f"{made.length_pct:.2g}% have no end")
    if made.repeating_pct:
        parts.append(f"{made.repeating_pct:.2g}% repeat themselves")
    if made.cost_per_million_tokens is not None:
        parts.append(f"a million tokens cost {made.cost_per_million_tokens:,.2f}")
    return [f"outputs: {', '.join(parts)}"]


def texts_block(report: Report) -> Block:
    """Return the tokens that were read and written."""
    return Block("Texts", [*text_lines(report), *written_lines(report)])
