"""Sentences of a report: what a run did, in lines for a terminal and for the page."""

from __future__ import annotations

from typing import Any

from pipeline.core.printable import num_of
from pipeline.report.showing.number_format import (
    format_count,
    format_duration,
    format_rate,
    format_size,
)
from pipeline.storage.skipped import Skipped

_HOPS = {
    "stored": "stored",
    "to_decoder": "to the decoders",
    "to_actor": "to the actors",
    "to_device": "to the device",
    "written": "staged",
    "published": "published",
}


def hop_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line what a row weighs on its way, as far as it was measured."""
    sizes = report["bytes_per_row"]
    is_fused = report["decode_in"] == "actors"
    names = {**_HOPS, "to_decoder": "to the tokenizers"} if report.get("texts") else _HOPS
    known = [
        f"{format_size(sizes[hop])} {named}"
        for hop, named in names.items()
        if sizes[hop] is not None and not (is_fused and hop == "to_decoder")
    ]
    return [f"a row: {', '.join(known)}"] if known else []


def slower_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line per stage which became slower since the last comparable run."""
    return [
        f"slower than before: {stage['stage']}, {format_rate(stage['rows_per_busy_slot_s'])} "
        f"rows/s per slot while busy instead of {format_rate(stage['before'])} in run "
        f"{stage['run_id']}"
        for stage in report["slower_than_before"] or []
    ]


def failure_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line per cause why rows failed, with one of the rows."""
    return [
        f"{'at least ' if found['at_least'] else ''}{num_of(found['num_rows'], 'row')} "
        f"{found['reason']}"
        + (f" at {found['stage']}" if found["stage"] else "")
        + (f": {found['message']}" if found["message"] else "")
        + (f" (e.g. {found['row_id']})" if found["row_id"] else "")
        for found in report.get("top_failures") or []
    ]


def skipped_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line which files below the source are no input."""
    skipped = report.get("skipped")  # not in reports of older versions
    if not skipped or not skipped["files"]:
        return []
    said = Skipped.from_dict(skipped).describe()
    return [f"skipped {num_of(skipped['files'], 'file')}: {said}"]


def scores_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line what the model's outputs are, if they are not plainly logits."""
    said = report["model"].get("scores")  # not in reports of older versions
    return [said] if said else []


def device_lines(report: dict[str, Any]) -> list[str]:
    """Say which GPUs, or different processors, predicted, and what would make them faster."""
    model = report["model"]
    devices = model.get("devices") or {}  # not in reports of older versions
    told = "; ".join(f"{device}: {num_of(rows, 'row')}" for device, rows in devices.items())
    is_told = len(devices) > 1 or (devices and model["device"] != "cpu")
    return [*([f"computed on {told}"] if is_told else []), *(model.get("advice") or [])]


def gate_lines(report: dict[str, Any]) -> list[str]:
    """Say what the gates found but did not refuse; what they refused is the error."""
    said = {"warn": "warns: ", "accepted": "failed: "}
    return [
        f"gate {gate['name']} {said[gate['status']]}{gate['message']}"
        + (f" (accepted: {gate['reason']})" if gate.get("reason") else "")
        for gate in report["gates"]
        if gate["status"] in said
    ]


def totals_line(report: dict[str, Any]) -> str:
    """Sum up rows, rates, time and cost of a run in one line."""
    slices = report["slices"]
    is_vain = report["status"] == "nothing_to_do" and (report.get("retry") or {}).get("entries")
    status = "nothing has changed" if is_vain else report["status"].replace("_", " ")
    parts = [status, *_row_totals(report["status"], report["rows"])]
    if report["unreadable_shards"]:
        parts.append(f"unreadable shards {report['unreadable_shards']} (rows unknown)")
    isolation = report.get("isolation") or {}
    if isolation.get("dead_processes"):
        parts.append(
            f"{_processes(isolation['dead_processes'])} crashed, "
            f"{num_of(isolation['rows'], 'row')} isolated"
        )
    gpu_decode = report.get("gpu_decode")
    if gpu_decode:
        parts.append(
            f"{format_count(gpu_decode['on_gpu'])} images decoded on the GPU, "
            f"{format_count(gpu_decode['on_cpu'])} on the CPU"
        )
    if slices["resumed"]:
        parts.append(
            f"{format_count(slices['resumed'])} of {format_count(slices['total'])} slices taken "
            "over from an earlier run"
        )
    if report["rows_per_s"] is not None:
        parts.append(f"{format_rate(report['rows_per_s'])} rows/s")
    texts = report.get("texts") or {}
    if texts.get("tokens_per_s"):
        parts.append(f"{format_rate(texts['tokens_per_s'])} tokens/s")
    if report["wall_s"] is not None:
        parts.append(f"{format_duration(report['wall_s'])} in all")
    if report["cost_per_million_rows"] is not None:
        parts.append(f"a million rows cost {report['cost_per_million_rows']:,.2f}")
    return "; ".join(parts)


def retry_lines(report: dict[str, Any]) -> list[str]:
    """Say in one line what became of the retried rows of a quarantine."""
    retry = report.get("retry")
    if not retry or not retry["entries"]:
        return []
    parts = [
        f"{format_count(retry['entries'])} quarantined rows of version {retry['base_version']}"
    ]
    if retry["recovered"] is not None:
        parts.append(f"{format_count(retry['recovered'])} are predicted now")
        parts.append(f"{format_count(retry['failed_again'])} failed again")
    others = {
        "duplicate_ids": "for their ids",
        "inputs_changed": "since their inputs changed",
        "not_asked": "with reasons that were not asked for",
    }
    parts += [f"{format_count(retry[key])} stay {why}" for key, why in others.items() if retry[key]]
    return [f"retried: {', '.join(parts)}"]


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count:,} processes"


def _row_totals(status: str, rows: dict[str, int | None]) -> list[str]:
    total, predicted, quarantined = (rows[name] for name in ("total", "predicted", "quarantined"))
    if total is None:
        return []
    split = f"{format_count(predicted)} predicted + {format_count(quarantined)} quarantined"
    is_whole = (predicted or 0) + (quarantined or 0) == total
    if status == "nothing_to_do":
        # This run predicted nothing; its own figures say nothing of what is published.
        return [f"already published: {num_of(total, 'row')}" + (f" = {split}" if is_whole else "")]
    return [
        f"{num_of(total, 'row')} = {split}" if is_whole else f"{split} of {num_of(total, 'row')}"
    ]
