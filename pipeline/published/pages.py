"""The page of `inspect --html`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.commit.layout import Layout
from pipeline.commit.read import locate, require_current
from pipeline.core.errors import JobError
from pipeline.published.originals import OriginalFinder
from pipeline.published.overview import Status
from pipeline.published.sheets import try_sheet
from pipeline.published.survey import survey
from pipeline.report.render import page_html
from pipeline.report.showing.printed import document_html

_FIRST = ("labels", "reasons", "predictions", "quarantine")
"""What a page says before the pictures, beside the rows; ids and hashes come behind them."""


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
    pieces: list[str] = []
    if "partitions" in document:
        partitions = Status(store.url(""), tuple(survey(store)[::-1])).shown()["partitions"]
        pieces += document_html("", {"the last partition first": partitions})
    first = {**newest["rows"], **{name: newest[name] for name in _FIRST}}
    pieces += document_html(f"{layout.name}, version {newest['version']}", first)
    sheet = try_sheet(OriginalFinder(store, layout, manifest, options), samples)
    others = {name: value for name, value in newest.items() if name not in ("rows", *_FIRST)}
    return page_html(
        store.url("").rstrip("/"), pieces, sheet, document_html("how it was made", others)
    )


def write_page(page: str, path: Path) -> None:
    """Write a page to a local file.

    Raises:
        JobError: It cannot be written.
    """
    try:
        path.write_text(page, "utf-8")
    except OSError as error:
        raise JobError(f"{path}: cannot be written: {error.strerror or error}") from error
