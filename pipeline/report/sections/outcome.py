"""The outcome of a run: rows, slices, gates, output, and the lines that sum it up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pipeline.core.printable import num_of
from pipeline.report.sections import Section
from pipeline.report.sections.carried import carried_lines, retry_lines
from pipeline.report.showing.blocks import (
    UNKNOWN,
    Block,
    facts_of,
    format_count,
    format_duration,
    format_rate,
    table_of,
)
from pipeline.sources.source_format import LeftOut

if TYPE_CHECKING:
    from pipeline.report.document import Report

BROKEN = ("refused", "failed")
"""Statuses of runs that published nothing because of an error."""


class Rows(Section):
    """Rows of the partition; rows of unreadable shards are unknown and not counted."""

    total: int | None = None
    """Rows of the input: predicted + quarantined. With `left_out`, rows of the shards that were
    opened."""
    predicted: int | None = None
    quarantined: int | None = None
    computed: int | None = None
    """Rows that went through the stages in this run."""
    resumed: int | None = None
    """Rows that an earlier run had finished."""
    carried: int | None = None
    """Rows with the prediction of an earlier version; null if nothing could be carried over.
    `total` is computed + resumed + carried, and the rows that a retry keeps in the quarantine:
    `duplicate_ids` and `not_asked` of its section."""
    left_out: int | None = None
    """Rows of opened shards for which `source.where` is not true; null without it."""
    unopened_shards: int | None = None
    """Shards of which `source.where` leaves out every row by their folders, or by their table."""
    left: int | None = None
    """Rows not computed yet when the run ended; null if unknown."""


class Slices(Section):
    """Slices: the grain of resuming."""

    total: int | None = None
    computed: int | None = None
    resumed: int | None = None
    left: int | None = None


class Gate(Section):
    """One check before publishing."""

    name: str
    status: Literal["pass", "warn", "fail", "off", "accepted"]
    """`accepted`: it failed, and `--accept` published nevertheless, for the `reason`."""
    value: float | int | str | None = None
    limit: float | int | str | None = None
    message: str | None = None
    reason: str | None = None


class Output(Section):
    """The published version, and where the files of the run are; null if there is none."""

    uri: str | None = None
    """Location of the predictions."""
    version: int | None = None
    """Number of the published version."""
    quarantine: str | None = None
    report: str | None = None
    """Location of report.html; report.json is beside it."""
    parts: int | None = None
    bytes: int | None = None


def verdict_block(report: Report) -> Block:
    """Return the lines that say why a run ended as it did, and what it did."""
    num_passed = sum(gate.status == "pass" for gate in report.gates)
    is_passed = num_passed and report.status == "published"
    return Block(
        lines=[
            *([report.error] if report.error else []),
            *gate_lines(report),
            *([f"{num_of(num_passed, 'gate')} passed"] if is_passed else []),
            totals_line(report),
            *retry_lines(report),
            *carried_lines(report),
        ]
    )


def gate_lines(report: Report) -> list[str]:
    """Return a line per gate that warns or was accepted; a failed gate is in the error."""
    words = {"warn": "warns: ", "accepted": "failed: "}
    return [
        f"gate {gate.name} {words[gate.status]}{gate.message}"
        + (f" (accepted: {gate.reason})" if gate.reason else "")
        for gate in report.gates
        if gate.status in words
    ]


def totals_line(report: Report) -> str:
    """Sum up rows, rates, time and cost of a run in one line."""
    slices, isolation = report.slices, report.isolation
    is_vain = report.status == "nothing_to_do" and report.retry and report.retry.entries
    status = "nothing has changed" if is_vain else report.status.replace("_", " ")
    parts = [status, *_row_totals(report.status, report.rows)]
    if report.rows.left_out is not None:
        left_out = LeftOut(report.rows.left_out, report.rows.unopened_shards or 0)
        parts.append(f"source.where leaves out {left_out.describe()}")
    if report.unreadable_shards:
        parts.append(f"unreadable shards {report.unreadable_shards} (rows unknown)")
    if isolation.dead_processes:
        parts.append(
            f"{_processes(isolation.dead_processes)} crashed, "
            f"{num_of(isolation.rows, 'row')} isolated"
        )
    if slices.resumed:
        parts.append(
            f"{format_count(slices.resumed)} of {format_count(slices.total)} slices taken "
            "over from an earlier run"
        )
    if report.rows_per_s is not None:
        parts.append(f"{format_rate(report.rows_per_s)} rows/s")
    if report.texts and report.texts.tokens_per_s:
        parts.append(f"{format_rate(report.texts.tokens_per_s)} tokens/s")
    if report.wall_s is not None:
        parts.append(f"{format_duration(report.wall_s)} in all")
    if report.cost_per_million_rows is not None:
        parts.append(f"a million rows cost {report.cost_per_million_rows:,.2f}")
    return "; ".join(parts)


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count:,} processes"


def _row_totals(status: str, rows: Rows) -> list[str]:
    if rows.total is None:
        return []
    split = (
        f"{format_count(rows.predicted)} predicted + {format_count(rows.quarantined)} quarantined"
    )
    is_whole = (rows.predicted or 0) + (rows.quarantined or 0) == rows.total
    whole = f"{num_of(rows.total, 'row')} = {split}"
    if status == "nothing_to_do":
        # The figures of this run, which predicted nothing, are not those of the published version.
        return [f"already published: {whole if is_whole else num_of(rows.total, 'row')}"]
    return [whole if is_whole else f"{split} of {num_of(rows.total, 'row')}"]


def headline_block(report: Report) -> Block:
    """Return the figures at the top of the page."""
    rows, texts, written = report.rows, report.texts, report.written
    cost = report.cost_per_million_rows
    return Block(
        facts={
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
    )


def gates_block(report: Report) -> Block:
    """Return the results of the gates."""
    return Block("Gates", table=table_of(report.gates))


def output_block(report: Report) -> Block:
    """Return the published version, and its slices."""
    slices = {f"slices {name}": number for name, number in facts_of(report.slices).items()}
    fingerprint = facts_of({"fingerprint": report.fingerprint})
    return Block("Output", facts=facts_of(report.output) | fingerprint | slices)
