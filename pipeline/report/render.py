"""Show documents to people: a report as a page or a table, any other dict as sections.

All ways escape or clean every text, for names and messages come from the data. Callers write the
bytes; nothing here touches storage.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.printable import printable
from pipeline.core.schema import clean_message
from pipeline.core.skipped import Skipped

if TYPE_CHECKING:
    from rich.console import JustifyMethod, RenderableType
    from rich.table import Table


def to_html(report: dict[str, Any]) -> str:
    """Render a report as one page that loads nothing: inline CSS and SVG, all values escaped."""
    import jinja2

    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        count=_count,
        rate=_rate,
        duration=_duration,
        size=_size,
        pct=_pct,
        plain=_plain,
        figure=_figure,
    )
    template = Path(__file__).with_name("report.html.jinja").read_text("utf-8")
    return environment.from_string(template).render(report=report, notes=_retry(report))


def render_table(report: dict[str, Any]) -> RenderableType:
    """Render the stages, the bottleneck and the totals for a terminal."""
    from rich.console import Group
    from rich.text import Text

    lines = [_totals(report), *_retry(report)]
    if report["status"] in _BROKEN:  # the verdict and its reason, no advice on speed
        told = [report["error"] or "", *_failures(report), *_gates(report), *lines]
        texts = (Text(clean_message(line)) for line in told if line)
        stages = [_stage_table(report)] if report["streaming_wall_s"] else []
        return Group(*texts, *stages, *_places(report))
    if report["error"]:
        lines.append(report["error"])
    # Text, never markup: brackets in a label or a message must not become styles.
    if report["status"] == "nothing_to_do":
        return Group(*(Text(clean_message(line)) for line in lines), *_places(report))
    lines[:0] = [
        report["bottleneck"]["advice"],
        *_hops(report),
        *_slower(report),
        *_failures(report),
        *_skipped(report),
        *_gates(report),
    ]
    texts = (Text(clean_message(line)) for line in lines)
    return Group(_stage_table(report), *texts, *_places(report))


def _places(report: dict[str, Any]) -> list[RenderableType]:
    """Say where what a run made lies, a line each, never folded: a folded path cannot be copied."""
    from rich.text import Text

    output = report["output"]
    named = {"predictions": "uri", "quarantine": "quarantine", "report": "report"}
    return [
        Text(printable(f"{name}: {output[key]}"), no_wrap=True, overflow="ignore")
        for name, key in named.items()
        if output.get(key)
    ]


def _stage_table(report: dict[str, Any]) -> Table:
    from rich.table import Table
    from rich.text import Text

    columns = ["stage", "rows", "rows/s", "busy", "slots", "used", "MiB/s in"]
    with_retries = any(stage.get("retries") for stage in report["stages"])
    columns += ["retries"] if with_retries else []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in report["stages"]:
        is_limit = stage["stage"] == report["bottleneck"]["stage"]
        table.add_row(
            Text(clean_message(stage["stage"])),
            _count(stage["rows_out"]),
            _rate(stage["rows_per_s"]),
            _duration(stage["busy_s"]),
            _plain(stage["slots"]),
            _pct(stage["utilisation_pct"]),
            _mib(stage["bytes_in"], stage["wall_s"]),
            *([_count(stage.get("retries"))] if with_retries else []),
            style="bold" if is_limit else "",
        )
    return table


_HOPS = {
    "stored": "stored",
    "to_decoder": "to the decoders",
    "to_actor": "to the actors",
    "to_device": "to the device",
    "written": "staged",
    "published": "published",
}


def _hops(report: dict[str, Any]) -> list[str]:
    """Say in one line what a row weighs on its way, as far as it was measured."""
    sizes = report["bytes_per_row"]
    is_fused = report["decode_in"] == "actors"
    known = [
        f"{_size(sizes[hop])} {named}"
        for hop, named in _HOPS.items()
        if sizes[hop] is not None and not (is_fused and hop == "to_decoder")
    ]
    return [f"a row: {', '.join(known)}"] if known else []


def _slower(report: dict[str, Any]) -> list[str]:
    return [
        f"slower than before: {stage['stage']}, {_rate(stage['rows_per_busy_slot_s'])} rows/s "
        f"per slot while busy instead of {_rate(stage['before'])} in run {stage['run_id']}"
        for stage in report["slower_than_before"] or []
    ]


_BROKEN = ("refused", "failed")


def _failures(report: dict[str, Any]) -> list[str]:
    """Say in one line per cause why rows failed, with one of the rows."""
    return [
        f"{'at least ' if found['at_least'] else ''}{_count(found['num_rows'])} rows "
        f"{found['reason']}"
        + (f" at {found['stage']}" if found["stage"] else "")
        + (f": {found['message']}" if found["message"] else "")
        + (f" (e.g. {found['row_id']})" if found["row_id"] else "")
        for found in report.get("top_failures") or []
    ]


def _skipped(report: dict[str, Any]) -> list[str]:
    """Say in one line which files below the source are no input."""
    skipped = report.get("skipped")  # not in reports of older versions
    if not skipped or not skipped["files"]:
        return []
    said = Skipped.from_dict(skipped).describe()
    return [f"skipped {_count(skipped['files'])} files: {said}"]


def _gates(report: dict[str, Any]) -> list[str]:
    """Say what the gates found but did not refuse; what they refused is the error."""
    said = {"warn": "warns: ", "accepted": "failed: "}
    return [
        f"gate {gate['name']} {said[gate['status']]}{gate['message']}"
        + (f" (accepted: {gate['reason']})" if gate.get("reason") else "")
        for gate in report["gates"]
        if gate["status"] in said
    ]


def _totals(report: dict[str, Any]) -> str:
    slices = report["slices"]
    is_vain = report["status"] == "nothing_to_do" and (report.get("retry") or {}).get("entries")
    status = "nothing has changed" if is_vain else report["status"].replace("_", " ")
    parts = [status, *_row_totals(report["status"], report["rows"])]
    if report["unreadable_shards"]:
        parts.append(f"unreadable shards {report['unreadable_shards']} (rows unknown)")
    isolation = report.get("isolation") or {}
    if isolation.get("dead_processes"):
        parts.append(
            f"{_count(isolation['dead_processes'])} processes died, "
            f"{_count(isolation['rows'])} rows isolated"
        )
    gpu_decode = report.get("gpu_decode")
    if gpu_decode:
        parts.append(
            f"{_count(gpu_decode['on_gpu'])} images decoded on the GPU, "
            f"{_count(gpu_decode['on_cpu'])} on the CPU"
        )
    if slices["resumed"]:
        parts.append(
            f"{_count(slices['resumed'])} of {_count(slices['total'])} slices taken over from an "
            "earlier run"
        )
    if report["rows_per_s"] is not None:
        parts.append(f"{_rate(report['rows_per_s'])} rows/s")
    if report["wall_s"] is not None:
        parts.append(f"{_duration(report['wall_s'])} in all")
    if report["cost_per_million_rows"] is not None:
        parts.append(f"a million rows cost {report['cost_per_million_rows']:,.2f}")
    return "; ".join(parts)


def _retry(report: dict[str, Any]) -> list[str]:
    """Say in one line what became of the rows of a quarantine that went again."""
    retry = report.get("retry")
    if not retry or not retry["entries"]:
        return []
    parts = [f"{_count(retry['entries'])} quarantined rows of version {retry['base_version']}"]
    if retry["recovered"] is not None:
        parts.append(f"{_count(retry['recovered'])} are predicted now")
        parts.append(f"{_count(retry['failed_again'])} failed again")
    others = {
        "duplicate_ids": "for their ids",
        "inputs_changed": "since their inputs changed",
        "not_asked": "for reasons that were not asked for",
    }
    parts += [f"{_count(retry[key])} stay {why}" for key, why in others.items() if retry[key]]
    return [f"retried: {', '.join(parts)}"]


def _row_totals(status: str, rows: dict[str, int | None]) -> list[str]:
    total, predicted, quarantined = (rows[name] for name in ("total", "predicted", "quarantined"))
    if total is None:
        return []
    split = f"{_count(predicted)} predicted + {_count(quarantined)} quarantined"
    is_whole = (predicted or 0) + (quarantined or 0) == total
    if status == "nothing_to_do":
        # This run predicted nothing; its own figures say nothing of what is published.
        return [f"already published: {_count(total)} rows" + (f" = {split}" if is_whole else "")]
    return [f"{_count(total)} rows = {split}" if is_whole else f"{split} of {_count(total)} rows"]


def render_document(document: dict[str, Any]) -> RenderableType:
    """Render nested dicts for a terminal: pairs, small tables for lists of dicts, sections."""
    from rich.console import Group

    return Group(*_section(document))


def _section(document: dict[str, Any]) -> list[RenderableType]:
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    pairs = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    pairs.add_column(no_wrap=True)
    pairs.add_column(overflow="fold")
    sections: list[RenderableType] = []
    for key, value in document.items():
        if isinstance(value, dict) and value:
            body: list[RenderableType] = _section(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            body = [_table(value)]
        else:
            pairs.add_row(Text(_title(key), style="dim"), Text(_show(key, value)))
            continue
        sections += [Text(""), Text(_title(key), style="bold")]
        sections += [Padding(piece, (0, 0, 0, 2)) for piece in body]
    return [pairs, *sections] if pairs.row_count else sections


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in names:
        numeric = all(isinstance(row.get(name), int | float | None) for row in rows)
        side: JustifyMethod = "right" if numeric else "left"
        table.add_column(Text(_title(name)), justify=side, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_show(name, row.get(name))) for name in names))
    return table


def _title(key: str) -> str:
    return printable(key.replace("_", " "))


def _show(key: str, value: Any) -> str:
    if value is None or value in ([], {}, ""):
        return _UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return _size(value) if key.endswith("bytes") else _count(value)
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else _UNKNOWN
    if isinstance(value, list):
        return ", ".join(_show(key, item) for item in value)
    return printable(str(value))


_UNKNOWN = "-"


def _printable(value: Any) -> Any:
    # A macro's result is already escaped; every other text is data and becomes one clean line.
    if value is None:
        return _UNKNOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return clean_message(value)
    return value


def _count(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:,.0f}"


def _plain(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:g}"


def _figure(value: float | str | None) -> float | str | None:
    return round(value, 4) if isinstance(value, float) else value


def _rate(value: float | None) -> str:
    if value is None:
        return _UNKNOWN
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _pct(value: float | None) -> str:
    return _UNKNOWN if value is None else f"{value:.1f}%"


def _duration(value_s: float | None) -> str:
    if value_s is None:
        return _UNKNOWN
    if value_s < 60:
        return f"{value_s:.1f} s"
    minutes, seconds = divmod(round(value_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s"


def _mib(amount_bytes: float | None, over_s: float | None) -> str:
    return (
        _UNKNOWN if amount_bytes is None or not over_s else f"{amount_bytes / over_s / 2**20:,.1f}"
    )


def _size(value_bytes: float | None) -> str:
    if value_bytes is None:
        return _UNKNOWN
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value_bytes < 1024:
            return f"{value_bytes:.0f} B" if unit == "B" else f"{value_bytes:.1f} {unit}"
        value_bytes /= 1024
    return f"{value_bytes:.1f} TiB"
