"""How a run ended: its rows and slices, the gates, what was published."""

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

if TYPE_CHECKING:
    from pipeline.report.document import Report

BROKEN = ("refused", "failed")
"""Statuses of runs that came to nothing."""


class Rows(Section):
    """Rows of the partition; rows of unreadable shards are unknown and not counted."""

    total: int | None = None
    """Rows of the input: predicted + quarantined."""
    predicted: int | None = None
    quarantined: int | None = None
    computed: int | None = None
    """Went through the stages in this run."""
    resumed: int | None = None
    """Taken over, finished, from an earlier run."""
    carried: int | None = None
    """Not computed: their predictions are those of an earlier version; null if nothing could be
    carried over. `total` is computed + resumed + carried, and the rows that a retry keeps in the
    quarantine: `duplicate_ids` and `not_asked` of its section."""
    left: int | None = None
    """Not computed yet when the run ended; null if unknown."""


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
    """What was published, and where the rest lies; null is what there is not."""

    uri: str | None = None
    """Of the predictions."""
    version: int | None = None
    """Number of the version that is published."""
    quarantine: str | None = None
    report: str | None = None
    """Of report.html; report.json lies beside it."""
    parts: int | None = None
    bytes: int | None = None


def verdict_block(report: Report) -> Block:
    """Say why a run ended as it did, and what it did."""
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
    """Say what the gates found but did not refuse; what they refused is the error."""
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
        # This run predicted nothing; its own figures say nothing of what is published.
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
    """Return what was published, and the slices that made it."""
    slices = {f"slices {name}": number for name, number in facts_of(report.slices).items()}
    fingerprint = facts_of({"fingerprint": report.fingerprint})
    return Block("Output", facts=facts_of(report.output) | fingerprint | slices)
