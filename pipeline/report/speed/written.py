"""The section of the report on texts that a model has written: tokens, speed, lengths."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Mapping

from pipeline.core.figures.counters import PREFILL
from pipeline.core.figures.slice_figures import Steps, Tokens
from pipeline.report.sections import Section
from pipeline.report.speed.limits import Load
from pipeline.report.speed.performance import ratio


class Written(Section):
    """Texts that this run wrote, quarantined ones included."""

    input_tokens: int
    """Of prompts, padding not."""
    output_tokens: int
    prefill_tokens_per_s: float | None
    """Tokens of prompts over the busy seconds of actors that read them."""
    decode_tokens_per_s: float | None
    """Tokens of outputs over the busy seconds of actors that wrote them."""
    rows_per_step: float | None
    """Of a batch, in the mean over the steps that write a token of each."""
    decode_padding_pct: float | None
    """Share of these rows that had ended already; they leave together with others."""
    output_tokens_p50: int | None
    """Half of the outputs are not longer; up to 3%."""
    output_tokens_p95: int | None
    length_pct: float | None
    """Share of outputs that have the most tokens and no end: `finish_reason` is `length`."""
    repeating_pct: float | None
    """Share of outputs that end so, in the same few tokens again and again."""
    cost_per_million_tokens: float | None = None
    """Of both kinds, in the currency of `run.price_per_node_hour`."""


def written_of(load: Load, cost: float | None) -> Written | None:
    """Return the section; None if no texts were written.

    Args:
        load: What was measured.
        cost: Of the run; None: unknown.
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
