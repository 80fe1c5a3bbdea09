"""The stages of a run: rows, seconds, bytes, crashes; its start-up; stages that became slower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipeline.core.figures import STARTUP_PARTS, Isolated, stages_with
from pipeline.report.sections import Section, ratio
from pipeline.report.sections.limits import Load, utilisation_pct
from pipeline.report.sections.outcome import BROKEN
from pipeline.report.showing.blocks import (
    Bar,
    Block,
    Cell,
    Table,
    format_count,
    format_duration,
    format_mib,
    format_pct,
    format_plain,
    format_rate,
    format_size,
    table_of,
)

if TYPE_CHECKING:
    from pipeline.report.document import Report

SLOWER_PCT = 20.0
MIN_BUSY_S = 1.0
"""Of less work than this, a fifth is noise."""
_FIXED = stages_with(())
_HOPS = {
    "stored": "stored",
    "to_decoder": "to the decoders",
    "to_actor": "to the actors",
    "to_device": "to the device",
    "written": "staged",
    "published": "published",
}


class Stage(Section):
    """The figures of one stage in this run; null if it was not measured."""

    stage: str
    rows_in: int | None
    rows_out: int | None
    rows_quarantined: int | None
    bytes_in: int | None
    bytes_out: int | None
    busy_s: float | None
    """Summed over all slots."""
    slots: float | None
    """Number of this stage that could work at once; stages of one group share their slots."""
    wall_s: float | None
    """Base of the rates: the streaming wall; for list and publish the whole run."""
    rows_per_s: float | None
    """`rows_out / wall_s`."""
    rows_per_busy_slot_s: float | None
    """`rows_out / busy_s`: the speed of a slot that never waits."""
    utilisation_pct: float | None
    """`busy_s / (slots * wall_s)`."""
    retries: int | None
    """Requests to a store that were repeated after a transient error."""


def stages_of(load: Load) -> list[Stage]:
    """Return every stage, in order."""
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


def stages_block(report: Report) -> Block:
    """Return one row per stage."""
    if all(stage.busy_s is None for stage in report.stages):
        return Block()
    narrow = ["stage", "rows", "rows/s", "busy", "slots", "used", "MiB/s in"]
    with_retries = ["retries"] if any(stage.retries for stage in report.stages) else []
    columns = (*narrow, *with_retries, "rows in", "quarantined", "in", "out",
               "rows/s per slot while busy", "")  # fmt: skip
    rows: list[Sequence[Cell]] = [
        (
            stage.stage,
            format_count(stage.rows_out),
            format_rate(stage.rows_per_s),
            format_duration(stage.busy_s),
            format_plain(stage.slots),
            format_pct(stage.utilisation_pct),
            format_mib(stage.bytes_in, stage.wall_s),
            *([format_count(stage.retries)] if with_retries else []),
            format_count(stage.rows_in),
            format_count(stage.rows_quarantined),
            format_size(stage.bytes_in),
            format_size(stage.bytes_out),
            format_rate(stage.rows_per_busy_slot_s),
            Bar(stage.utilisation_pct),
        )
        for stage in report.stages
    ]
    is_vain = report.status in BROKEN and report.streaming_wall_s is None
    shown = [] if is_vain else [*narrow, *with_retries]
    prepared = [stage.stage for stage in report.stages if stage.stage not in _FIXED]
    in_actors = ["transfer", "predict", *(["write"] if report.write_in == "actors" else [])]
    others = ""
    if report.decode_in == "actors":
        in_actors[:0] = prepared
    elif len(prepared) > 1:
        others = f" {' and '.join(prepared)} share theirs."
    return Block(
        "Where the time went",
        table=Table(columns, rows, (), report.bottleneck.stage, shown),
        note=f"Slots: how many of a stage can work at the same time. {', '.join(in_actors)} share "
        f"the slots of the actors.{others} list and publish "
        "are measured against the whole run, the others against the streaming time.",
    )


class SlowerStage(Section):
    """A stage whose slots work much slower than in the last comparable run."""

    stage: str
    rows_per_busy_slot_s: float
    before: float
    """The same figure of that run."""
    change_pct: float
    run_id: str
    """The run of the comparison."""


def slower_than_before(report: Report, previous: Report) -> list[SlowerStage]:
    """Return the stages whose rows/s per busy slot fell by more than `SLOWER_PCT`."""
    before = {stage.stage: stage.rows_per_busy_slot_s for stage in previous.stages}
    slower = []
    for stage in report.stages:
        now, then = stage.rows_per_busy_slot_s, before.get(stage.stage)
        if now is None or not then or (stage.busy_s or 0.0) < MIN_BUSY_S:
            continue
        change_pct = round(100 * (now / then - 1), 2)
        if change_pct < -SLOWER_PCT:
            slower.append(
                SlowerStage(
                    stage=stage.stage,
                    rows_per_busy_slot_s=now,
                    before=then,
                    change_pct=change_pct,
                    run_id=previous.run_id,
                )
            )
    return slower


def slower_lines(report: Report) -> list[str]:
    """Return a line per stage that became slower since the last comparable run."""
    return [
        f"slower than before: {slower.stage}, {format_rate(slower.rows_per_busy_slot_s)} "
        f"rows/s per slot while busy instead of {format_rate(slower.before)} in run "
        f"{slower.run_id}"
        for slower in report.slower_than_before or []
    ]


class StartupPart(Section):
    """One part of the wait for the first row, as in `STARTUP_PARTS`."""

    part: str
    wall_s: float | None
    """Seconds that the run waited for it; of parallel processes the mean."""
    busy_s: float | None
    """Seconds summed over all processes."""
    share_pct: float | None
    """`wall_s` as a share of the wall time of the run."""


def startup_parts(load: Load) -> list[StartupPart]:
    """Return the parts of the wait for the first row."""
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


def startup_block(report: Report) -> Block:
    """Return the parts of the start-up."""
    table = table_of(report.startup, lambda part: Bar(part.share_pct), report.bottleneck.stage)
    return Block("Start-up", table=table)


class Isolation(Section):
    """Work that was done in child processes after workers had crashed on it, in this run."""

    dead_processes: int = 0
    """Workers that crashed, hung or were killed in the middle of a slice, and their children."""
    rows: int = 0
    """Rows that went through a child; a row decoded in a task and predicted counts twice."""
    quarantined: int = 0
    """Rows that ended the process that worked on them."""


def isolation_of(load: Load) -> Isolation:
    """Return the section."""
    isolated = load.figures.isolated or Isolated()
    return Isolation(
        dead_processes=isolated.dead_processes,
        rows=isolated.num_rows,
        quarantined=isolated.num_quarantined,
    )


class BytesPerRow(Section):
    """Mean bytes of a row at each hop, over the rows that went that far."""

    stored: float | None = None
    """Encoded, as read from the store; for features the vector."""
    to_decoder: float | None = None
    """Encoded; the same hop as `to_actor` if the actors decode."""
    to_actor: float | None = None
    """Pixels, or the encoded image if the actors decode."""
    to_device: float | None = None
    """Model input; on the CPU the copy into the batch."""
    written: float | None = None
    """In the staged part."""
    published: float | None = None
    """In the final parts, predictions and quarantine; over all rows of the partition."""


def bytes_per_row(load: Load) -> BytesPerRow:
    """Return the section, by the counters."""

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


def bytes_block(report: Report) -> Block:
    """Return the line on the bytes of a row."""
    return Block("A row on its way", hop_lines(report))


def hop_lines(report: Report) -> list[str]:
    """Say in one line how many bytes a row has at each hop that was measured."""
    is_fused = report.decode_in == "actors"
    names = {**_HOPS, "to_decoder": "to the tokenizers"} if report.texts else _HOPS
    known = [
        f"{format_size(size)} {names[hop]}"
        for hop, size in report.bytes_per_row
        if size is not None and not (is_fused and hop == "to_decoder")
    ]
    return [f"a row: {', '.join(known)}"] if known else []
