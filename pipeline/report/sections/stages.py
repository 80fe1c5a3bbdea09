"""The sections of the report that the counters decide: stages, limits, forecasts, bytes per row.

In: the `Load` of a run. Out: sections of report.json; what was not measured is null.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Mapping
from typing import Any

from pipeline.core.figures.counters import PREFILL, STARTUP_PARTS, stages_with
from pipeline.core.figures.slice_figures import Isolated, Steps, Tokens
from pipeline.report.sections.limits import Load, utilisation_pct
from pipeline.report.sections.outcome import Section


class StartupPart(Section):
    """One reason why the first row had to wait, as in `STARTUP_PARTS`."""

    part: str
    wall_s: float | None
    """Seconds that the run waited for it; of parallel processes the slowest counts."""
    busy_s: float | None
    """Seconds summed over all processes."""
    share_pct: float | None
    """`wall_s` as a share of the wall time of the run."""


class Stage(Section):
    """What one stage did in this run; all null if it was not measured."""

    stage: str
    rows_in: int | None
    rows_out: int | None
    rows_quarantined: int | None
    bytes_in: int | None
    bytes_out: int | None
    busy_s: float | None
    """Summed over all slots."""
    slots: float | None
    """How many of this stage could work at once; stages of one group share theirs."""
    wall_s: float | None
    """What the rates are over: the streaming wall; for list and publish the whole run."""
    rows_per_s: float | None
    """`rows_out / wall_s`."""
    rows_per_busy_slot_s: float | None
    """`rows_out / busy_s`: the speed of one slot that never waits."""
    utilisation_pct: float | None
    """`busy_s / (slots * wall_s)`."""
    retries: int | None
    """Requests to a store that were repeated after a passing error."""


class Isolation(Section):
    """What was worked on in child processes after workers crashed on it; of this run."""

    dead_processes: int = 0
    """Workers that crashed, hung or were killed in the middle of a slice, and their children."""
    rows: int = 0
    """Rows that went through a child, once for decoding in a task and once for predicting."""
    quarantined: int = 0
    """Rows that ended the process that worked on them."""


class BytesPerRow(Section):
    """Bytes of a row on its way, each over the rows that went that far."""

    stored: float | None = None
    """Encoded, as read from the store; of features the vector."""
    to_decoder: float | None = None
    """Encoded; with decoding in the actors the same hop as `to_actor`."""
    to_actor: float | None = None
    """What an actor gets: pixels, or the encoded image if the actors decode."""
    to_device: float | None = None
    """Model input; on the CPU the copy into the batch."""
    written: float | None = None
    """In the staged part."""
    published: float | None = None
    """In the final parts, predictions and quarantine; over all rows of the partition."""


class SlowerStage(Section):
    """A stage whose slots do their work much slower than in the last comparable run."""

    stage: str
    rows_per_busy_slot_s: float
    before: float
    """The same figure of that run."""
    change_pct: float
    run_id: str
    """The run that it is compared with."""


def ratio(amount: float | None, of: float | None) -> float | None:
    """Return amount / of; None if either is unknown, or there is no such number."""
    if amount is None or not of:
        return None
    return amount / of if math.isfinite(amount / of) else None


def startup_parts(load: Load) -> list[StartupPart]:
    """Return what the first row had to wait for."""
    measured = [part for part in STARTUP_PARTS if part in load.figures.stages]
    return [
        StartupPart(
            part=part,
            wall_s=load.startup.get(part),
            busy_s=load.busy_s(part) if part in load.figures.stages else None,
            share_pct=utilisation_pct(load.startup[part], 1, load.wall_s)
            if part in load.startup
            else None,
        )
        for part in dict.fromkeys([*load.startup, *measured])
    ]


def stages_of(load: Load) -> list[Stage]:
    """Return every stage, in order; what was not measured is null."""
    return [_stage(stage, load) for stage in stages_with(load.prepared)]


def _stage(stage: str, load: Load) -> Stage:
    slots = load.stage_slots(stage)
    wall_s = load.streaming_wall_s if stage in load.streaming else load.wall_s
    if stage not in load.figures.stages:
        unknown: dict[str, Any] = dict.fromkeys(Stage.model_fields)
        return Stage(**(unknown | {"stage": stage, "slots": slots, "wall_s": wall_s}))
    did = load.figures.stage(stage)
    return Stage(
        stage=stage,
        **vars(did),
        slots=slots,
        wall_s=wall_s,
        rows_per_s=ratio(did.rows_out, wall_s),
        rows_per_busy_slot_s=ratio(did.rows_out, did.busy_s),
        utilisation_pct=utilisation_pct(did.busy_s, slots, wall_s),
    )


def isolation_of(load: Load) -> Isolation:
    """Say how much had to be isolated."""
    isolated = load.figures.isolated or Isolated()
    return Isolation(
        dead_processes=isolated.dead_processes,
        rows=isolated.num_rows,
        quarantined=isolated.num_quarantined,
    )


def bytes_per_row(load: Load) -> BytesPerRow:
    """Return what a row weighs at each hop, by the counters."""

    def per_row(stage: str, side: str) -> float | None:
        did = load.figures.stage(stage)
        return ratio(getattr(did, f"bytes_{side}"), getattr(did, f"rows_{side}"))

    to_decoder = per_row(load.prepared[0], "in") if load.prepared else None
    prepared = per_row(load.prepared[-1], "out") if load.prepared else None
    published = load.figures.stage("publish")
    return BytesPerRow(
        stored=per_row("read", "in"),
        to_decoder=to_decoder,
        to_actor=to_decoder if load.fused else prepared,
        to_device=per_row("transfer", "in"),
        written=per_row("write", "out"),
        published=ratio(published.bytes_out, published.rows_in),
    )


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
