"""What a report says, in sections of lines, facts and tables; terminal and page render these.

A new figure of the report is added here, and both show it. Texts are not escaped yet: the terminal
and the page escape them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from pipeline.core.printable import num_of
from pipeline.report.sections.versions import Line, classes_of, over_time, trends_of
from pipeline.report.showing.number_format import (
    UNKNOWN,
    format_count,
    format_duration,
    format_field,
    format_mib,
    format_pct,
    format_plain,
    format_rate,
    format_size,
    is_unknown,
    title_of,
)
from pipeline.report.showing.summary import (
    carried_lines,
    device_lines,
    failure_lines,
    gate_lines,
    hop_lines,
    retry_lines,
    scores_lines,
    skipped_lines,
    slower_lines,
    text_lines,
    totals_line,
    written_lines,
)

if TYPE_CHECKING:
    from pipeline.report.document import Report

BROKEN = ("refused", "failed")


@dataclass(frozen=True)
class Bar:
    """A share as a bar, with a dark line across it."""

    pct: float | None
    mark_pct: float | None = None


Cell = str | Bar | Line


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is its name."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    texts: Sequence[str] = ()
    """Columns of text; the others are numbers or pictures."""
    limit: str | None = None
    """The row that held the run back."""
    narrow: Sequence[str] = ()
    """Columns for a terminal, in order; without any the table is for the page alone."""


@dataclass(frozen=True)
class Section:
    """What belongs together."""

    title: str = ""
    lines: Sequence[str] = ()
    """For terminal and page."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Name -> value, for the page."""
    table: Table | None = None
    note: str = ""
    """Below the table, for the page."""

    def __bool__(self) -> bool:
        return bool(self.lines or self.facts or (self.table and self.table.rows))


def layout(report: Report, past: Sequence[Report] = ()) -> dict[str, Section]:
    """Return the sections of a report by name, in the order of the page.

    Args:
        report: What is shown.
        past: Reports of earlier runs, the newest first.
    """
    output, slices = facts_of(report.output), facts_of(report.slices)
    return {
        "verdict": Section(lines=_verdict(report)),
        "headline": Section(facts=_headline(report)),
        "failed": _failed(report),
        "classes": _classes(report, past),
        "gates": Section("Gates", table=table_of(report.gates)),
        "trends": _lines("The last {} versions", trends_of([*past, report])),
        "carried": Section(
            "Carried over",
            facts=facts_of(report.carried),
            table=table_of(report.carried.sources if report.carried else ()),
        ),
        "skipped": Section(
            "Skipped files", skipped_lines(report), table=table_of(report.skipped.reasons)
        ),
        "output": Section(
            "Output",
            facts=output
            | facts_of({"fingerprint": report.fingerprint})
            | {f"slices {name}": number for name, number in slices.items()},
        ),
        "speed": _speed(report),
        "changes": Section(
            "What a change would bring",
            table=table_of(() if report.status in BROKEN else report.predictions),
            note="Each alone, by the service times of this run: never less than today, never more "
            "than the next limit.",
        ),
        "stages": _stages(report),
        "row": Section("A row on its way", hop_lines(report)),
        "texts": Section("Texts", [*text_lines(report), *written_lines(report)]),
        "time": _lines("Over time", over_time(report)),
        "startup": Section(
            "Start-up",
            table=table_of(
                report.startup, lambda part: Bar(part.share_pct), report.bottleneck.stage
            ),
        ),
        "model": Section(
            "Model and hardware",
            [*scores_lines(report), *device_lines(report)],
            facts_of(report.model) | facts_of(report.hardware),
        ),
        "versions": Section("Versions", facts=facts_of(dict(sorted(report.versions.items())))),
    }


def facts_of(section: BaseModel | Mapping[str, Any] | None) -> dict[str, str]:
    """Return the fields of a section that are known and plain."""
    return {
        title_of(name): format_field(name, value)
        for name, value in dict(section or {}).items()
        if not is_unknown(value) and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    return not isinstance(value[0] if isinstance(value, list) else value, BaseModel | dict)


def table_of(
    rows: Sequence[BaseModel], bar: Callable[[Any], Bar] | None = None, limit: str | None = None
) -> Table:
    """Return the fields of sections of one kind as columns, without those that none knows.

    Args:
        rows: The first field is the name of each.
        bar: Gives the bar at the end of a row.
        limit: The row that held the run back.
    """
    known = dict.fromkeys(name for row in rows for name, value in row if not is_unknown(value))
    texts = [title_of(name) for name in known if isinstance(_first(rows, name), str | list)]
    return Table(
        [*map(title_of, known), *([""] if bar else [])],
        [
            [
                *(format_field(name, getattr(row, name)) for name in known),
                *([bar(row)] if bar else []),
            ]
            for row in rows
        ],
        texts,
        limit,
    )


def _first(rows: Sequence[BaseModel], name: str) -> Any:
    return next(value for row in rows if not is_unknown(value := getattr(row, name)))


def _lines(title: str, lines: Sequence[Line]) -> Section:
    """Return small lines as a table."""
    rows = [(line.name, line.last, f"{line.low} to {line.high}", line) for line in lines]
    named = title.format(lines[0].num_points) if lines else title
    return Section(named, table=Table(("", "last", "range", ""), rows))


def _verdict(report: Report) -> list[str]:
    """Say why a run ended as it did, and what it did."""
    num_passed = sum(gate.status == "pass" for gate in report.gates)
    is_passed = num_passed and report.status == "published"
    return [
        *([report.error] if report.error else []),
        *gate_lines(report),
        *([f"{num_of(num_passed, 'gate')} passed"] if is_passed else []),
        totals_line(report),
        *retry_lines(report),
        *carried_lines(report),
    ]


def _headline(report: Report) -> dict[str, str]:
    rows, texts, written = report.rows, report.texts, report.written
    cost = report.cost_per_million_rows
    return {
        "rows": format_count(rows.total),
        "predicted": format_count(rows.predicted),
        "quarantined": format_count(rows.quarantined),
        "rows/s while streaming": format_rate(report.rows_per_s),
        **({"tokens/s": format_rate(texts.tokens_per_s)} if texts else {}),
        **({"tokens written": format_count(written.output_tokens)} if written else {}),
        "computed now": format_count(rows.computed),
        "taken over": format_count((rows.resumed or 0) + (rows.carried or 0)),
        "in all": format_duration(report.wall_s),
        **(
            {"cost of a million rows": f"{cost:.2f}"}
            if cost is not None
            else {"cost: needs run.price_per_node_hour": UNKNOWN}
        ),
    }


def _failed(report: Report) -> Section:
    most = max(report.reasons.values(), default=0) or 1
    reasons = sorted(report.reasons.items(), key=lambda reason: -reason[1])
    rows = [(name, format_count(number), Bar(100 * number / most)) for name, number in reasons]
    unreadable = f"Unreadable shards: {format_count(report.unreadable_shards)}. How many rows they "
    return Section(
        "Why rows failed",
        failure_lines(report),
        table=Table(("reason", "rows", ""), rows),
        note=f"{unreadable}hold is unknown." if report.unreadable_shards else "",
    )


def _classes(report: Report, past: Sequence[Report]) -> Section:
    classes = classes_of(report, past)
    scale = 100 / (classes.most_pct or 1)
    rows: list[Sequence[Cell]] = [
        (
            share.label,
            format_count(share.rows),
            format_pct(share.pct),
            *([format_pct(share.before_pct)] if classes.beside else []),
            Bar(scale * share.pct, None if share.before_pct is None else scale * share.before_pct),
        )
        for share in classes.shares
    ]
    before = ["before"] if classes.beside else []
    note = "The most frequent ones, of the rows with a prediction."
    if classes.has_ids:
        note += " A number behind a name is the class id: several classes have that name."
    if classes.beside:
        note += f" Before, and the dark line: {classes.beside}."
    return Section("Classes", table=Table(("class", "rows", "share", *before, ""), rows), note=note)


def _speed(report: Report) -> Section:
    """Return the limits, each beside the rate of this run."""
    rate, neck, limits = report.rows_per_s or 0.0, report.bottleneck, report.limits
    full = (
        max(3 * rate, 1.2 * min((limit.limit_rows_per_s for limit in limits), default=0.0)) or 1.0
    )
    advice = [] if report.status in BROKEN else [neck.advice]
    return Section(
        "What held it back",
        [*advice, *slower_lines(report)],
        table=table_of(
            limits,
            lambda limit: Bar(100 * limit.limit_rows_per_s / full, 100 * rate / full),
            neck.limit,
        ),
        note=f"What a group could do alone; dark line: this run, {format_rate(rate)} rows/s."
        if limits
        else "",
    )


_FIXED = ("list", "read", "transfer", "predict", "write", "publish")


def _stages(report: Report) -> Section:
    """Return one row per stage."""
    if all(stage.busy_s is None for stage in report.stages):
        return Section()
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
    return Section(
        "Where the time went",
        table=Table(columns, rows, (), report.bottleneck.stage, shown),
        note=f"Slots: how many of a stage can work at the same time. {', '.join(in_actors)} share "
        f"the slots of the actors.{others} list and publish "
        "are measured against the whole run, the others against the streaming time.",
    )
