"""The page of what gpu.py measured: a table for each model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from results import machine_lines

_COLUMNS = {
    "rows/s, whole": ("whole_rows_per_s", "{:,.0f}"),
    "steady": ("steady_rows_per_s", "{:,.0f}"),
    "model alone": ("in_memory_rows_per_s", "{:,.0f}"),
    "one decoder": ("decoded_rows_per_s", "{:,.0f}"),
    "of what is possible": ("share_of_possible", "{:.2f}"),
    "idle": ("idle_pct", "{:.1f}%"),
    "nvidia-smi": ("gpu_busy_pct", "{:.0f}%"),
    "card's memory": ("gpu_memory_mib", "{:,.0f} MiB"),
    "processors": ("host_cpu_s", "{:,.1f} s"),
}
"""Title -> the figure, and how it is written."""


def page_lines(document: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the page of a document of gpu.py."""
    yield f"# Rows/s on {document['gpu'] or 'the CPU'}, {document['date']}"
    yield ""
    yield from machine_lines(document["machine"])
    yield ""
    yield (
        f"{document['rows']:,} rows, one actor. `steady` counts the second half of the rows; what "
        "is possible is the model alone, its batches on the device already, or all decoders if "
        "that is less; `idle` is the share of that half in which the device computed no batch; "
        "`processors` are the busy seconds of all cores of the machine."
    )
    for model in dict.fromkeys(line["model"] for line in document["results"]):
        yield ""
        yield f"## {model}"
        yield ""
        yield f"| system | {' | '.join(_COLUMNS)} |"
        yield "|---|" + "---|" * len(_COLUMNS)
        for line in document["results"]:
            if line["model"] == model:
                yield f"| {_named(line)} | {' | '.join(_cells(line))} |"
    if document["skipped"]:
        yield ""
        yield "Not measured:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in document["skipped"].items())


def _named(line: dict[str, Any]) -> str:
    return " ".join(filter(None, (line["system"], line.get("runtime"), line["precision"])))


def _cells(line: dict[str, Any]) -> Iterator[str]:
    for name, written in _COLUMNS.values():
        value = line.get(name)
        yield "-" if value is None else written.format(value)
