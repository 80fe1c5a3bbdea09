"""Sentences of a report: what a run did, in lines for a terminal and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.printable import num_of
from pipeline.report.showing.number_format import (
    format_count,
    format_duration,
    format_rate,
    format_size,
)
from pipeline.storage.skipped import Skipped

if TYPE_CHECKING:
    from pipeline.report.document import Report
    from pipeline.report.sections.outcome import Rows

_HOPS = {
    "stored": "stored",
    "to_decoder": "to the decoders",
    "to_actor": "to the actors",
    "to_device": "to the device",
    "written": "staged",
    "published": "published",
}


def hop_lines(report: Report) -> list[str]:
    """Say in one line what a row weighs on its way, as far as it was measured."""
    is_fused = report.decode_in == "actors"
    names = {**_HOPS, "to_decoder": "to the tokenizers"} if report.texts else _HOPS
    known = [
        f"{format_size(size)} {names[hop]}"
        for hop, size in report.bytes_per_row
        if size is not None and not (is_fused and hop == "to_decoder")
    ]
    return [f"a row: {', '.join(known)}"] if known else []


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


def slower_lines(report: Report) -> list[str]:
    """Say in one line per stage which became slower since the last comparable run."""
    return [
        f"slower than before: {slower.stage}, {format_rate(slower.rows_per_busy_slot_s)} "
        f"rows/s per slot while busy instead of {format_rate(slower.before)} in run "
        f"{slower.run_id}"
        for slower in report.slower_than_before or []
    ]


def failure_lines(report: Report) -> list[str]:
    """Say in one line per cause why rows failed, with one of the rows."""
    return [
        f"{'at least ' if cause.at_least else ''}{num_of(cause.num_rows, 'row')} {cause.reason}"
        + (f" at {cause.stage}" if cause.stage else "")
        + (f": {cause.message}" if cause.message else "")
        + (f" (e.g. {cause.row_id})" if cause.row_id else "")
        for cause in report.top_failures
    ]


def skipped_lines(report: Report) -> list[str]:
    """Say in one line which files below the source are no input."""
    skipped = report.skipped
    if not skipped.files:
        return []
    names = Skipped.from_dict(skipped.model_dump()).describe()
    return [f"skipped {num_of(skipped.files, 'file')}: {names}"]


def scores_lines(report: Report) -> list[str]:
    """Say in one line what the model's outputs are, if they are not plainly logits."""
    return [report.model.scores] if report.model.scores else []


def device_lines(report: Report) -> list[str]:
    """Say which GPUs, or different processors, predicted, and what would make them faster."""
    model = report.model
    listed = "; ".join(f"{device}: {num_of(n, 'row')}" for device, n in model.devices.items())
    is_listed = len(model.devices) > 1 or (model.devices and model.device != "cpu")
    return [*([f"computed on {listed}"] if is_listed else []), *model.advice]


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


def retry_lines(report: Report) -> list[str]:
    """Say in one line what became of the retried rows of a quarantine."""
    retry = report.retry
    if not retry or not retry.entries:
        return []
    parts = [f"{format_count(retry.entries)} quarantined rows of version {retry.base_version}"]
    if retry.recovered is not None:
        parts.append(f"{format_count(retry.recovered)} are predicted now")
        parts.append(f"{format_count(retry.failed_again)} failed again")
    others = {
        "for their ids": retry.duplicate_ids,
        "with reasons that were not asked for": retry.not_asked,
    }
    parts += [f"{format_count(number)} stay {why}" for why, number in others.items() if number]
    return [f"retried: {', '.join(parts)}"]


def carried_lines(report: Report) -> list[str]:
    """Say in one line what was taken over from earlier versions, or why nothing could be."""
    carried = report.carried
    if carried is None:
        return []
    if not carried.rows:
        return [f"nothing carried over: {carried.why_not}"] if carried.looked_at else []
    versions = [f"{source.partition} version {source.version}" for source in carried.sources]
    parts = [f"{num_of(carried.rows, 'row')} of {' and '.join(versions)}"]
    others = {
        "new": carried.new_rows,
        "of changed shards": carried.changed_rows,
        "failed then": carried.failed_rows,
        "gone": carried.gone_rows,
        "predicted again to be compared": carried.checked_rows,
        "could not be looked up": carried.lookup_failed_rows,
    }
    parts += [f"{format_count(number)} {what}" for what, number in others.items() if number]
    if carried.changed_libraries:
        parts.append(f"more are compared since libraries changed: {carried.changed_libraries[0]}")
    return [f"carried over: {', '.join(parts)}"]


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
