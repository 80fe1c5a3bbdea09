"""The page of `inspect --html`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.published.read import locate, require_current
from pipeline.core.errors import JobError
from pipeline.report.showing.notebook import facts_html, table_html
from pipeline.report.showing.number_format import format_duration
from pipeline.report.showing.pages import page_html
from pipeline.runs.partitions.state import PartitionStatus
from pipeline.runs.partitions.survey import survey
from pipeline.runs.samples.originals import OriginalFinder
from pipeline.runs.samples.sheets import try_sheet

_FIRST = ("labels", "reasons", "predictions", "quarantine")
"""What a page says before the pictures, beside the rows; ids and hashes come behind them."""
_OF_PARTITIONS = ("partition", "state", "version", "published", "rows", "quarantined",
                  "carried over", "took", "cost", "why")  # fmt: skip


def inspect_page(
    document: Mapping[str, Any], uri: str, samples: int, storage_options: Mapping[str, Any]
) -> str:
    """Return what `inspect` found as a page, with rows beside what they were predicted from.

    Args:
        document: As `describe_output` gives it.
        uri: Of the output.
        samples: The most rows of the sheet.
        storage_options: fsspec options of the output and of the input.
    """
    options = dict(storage_options)
    store, _ = locate(uri, options)
    newest = document.get("newest", document)
    layout = Layout.named(newest["partition"])
    manifest = require_current(store, layout)
    pieces = []
    if "partitions" in document:
        pieces.append(_partitions_html(survey(store)))
    first = {**newest["rows"], **{name: newest[name] for name in _FIRST}}
    pieces += _pieces(f"{layout.name}, version {newest['version']}", first)
    sheet = try_sheet(OriginalFinder(store, layout, manifest, options), samples)
    others = {name: value for name, value in newest.items() if name not in ("rows", *_FIRST)}
    return page_html(store.url("").rstrip("/"), pieces, sheet, _pieces("how it was made", others))


def _partitions_html(found: Iterable[PartitionStatus]) -> str:
    rows = [
        (each.partition, each.state, each.version, each.published_at, each.rows, each.quarantined,
         each.carried, None if each.duration_s is None else format_duration(each.duration_s),
         each.cost, each.why)
        for each in found
    ]  # fmt: skip
    return table_html(_OF_PARTITIONS, rows[::-1], "the last partition first")


def _pieces(title: str, document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the plain values as a table, then each section."""
    plain = {
        name.replace("_", " "): value
        for name, value in document.items()
        if not isinstance(value, dict | list)
    }
    yield facts_html(title, plain)
    for name, value in document.items():
        told = name.replace("_", " ")
        if isinstance(value, dict) and any(value.values()):
            yield from _pieces(told, value)
        elif isinstance(value, list) and value:
            if isinstance(value[0], dict):
                names = list(dict.fromkeys(key for entry in value for key in entry))
                rows = [[entry.get(key) for key in names] for entry in value]
                yield table_html([each.replace("_", " ") for each in names], rows, told)
            else:
                yield facts_html(told, {told: ", ".join(map(str, value))})


def write_page(page: str, path: Path) -> None:
    """Write a page to a local file.

    Raises:
        JobError: It cannot be written.
    """
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror or error}") from error
