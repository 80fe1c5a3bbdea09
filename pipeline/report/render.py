"""The page of a report, and its lines on a terminal: both show the blocks of `layout`.

Both escape or clean every text, because names and messages come from the data. Callers write the
bytes; nothing here touches storage.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.printable import clean_message, printable
from pipeline.report.sections.bottleneck import bottleneck_block, changes_block
from pipeline.report.sections.carried import carried_block
from pipeline.report.sections.failures import failures_block, skipped_block
from pipeline.report.sections.model import model_block
from pipeline.report.sections.outcome import (
    BROKEN,
    gates_block,
    headline_block,
    output_block,
    verdict_block,
)
from pipeline.report.sections.over_time import over_time_block
from pipeline.report.sections.stages import bytes_block, stages_block, startup_block
from pipeline.report.sections.texts import texts_block
from pipeline.report.sections.versions import classes_block, trends_block
from pipeline.report.showing.blocks import UNKNOWN, Block, Table, facts_of
from pipeline.report.showing.printed import render_columns

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pipeline.report.document import Report

_DONE = ("stages", "speed", "row", "texts", "model", "failed", "skipped", "verdict")
"""Blocks for a terminal: the most important one is last, next to the prompt."""
_ORDERS = {"nothing_to_do": ("verdict",)} | dict.fromkeys(BROKEN, ("verdict", "failed", "stages"))
"""Other orders: a run that published nothing opens with its reason and has no advice on speed."""


def layout(report: Report, past: Sequence[Report] = ()) -> dict[str, Block]:
    """Return the blocks of a report by name, in the order of the page.

    Args:
        report: What is shown.
        past: Reports of earlier runs, the newest first.
    """
    return {
        "verdict": verdict_block(report),
        "headline": headline_block(report),
        "failed": failures_block(report),
        "classes": classes_block(report, past),
        "gates": gates_block(report),
        "trends": trends_block(report, past),
        "carried": carried_block(report),
        "skipped": skipped_block(report),
        "output": output_block(report),
        "speed": bottleneck_block(report),
        "changes": changes_block(report),
        "stages": stages_block(report),
        "row": bytes_block(report),
        "texts": texts_block(report),
        "time": over_time_block(report),
        "startup": startup_block(report),
        "model": model_block(report),
        "versions": Block("Versions", facts=facts_of(dict(sorted(report.versions.items())))),
    }


def to_html(report: Report, past: Sequence[Report] = (), sheets: str = "") -> str:
    """Render a report as one page that loads nothing: inline CSS and SVG, all values escaped.

    Args:
        report: What is shown.
        past: Reports of earlier runs, the newest first.
        sheets: Rows with their inputs, as escaped HTML.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_printable,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        zip=zip,
        report=report,
        sections=layout(report, past),
        sheets=Markup(sheets),  # noqa: S704  # escaped where it is made
        style=Markup(page_style()),  # noqa: S704  # of this package
        policy=content_policy(sheets),
    )


def _printable(value: Any) -> Any:
    # The result of a macro is already escaped; every other text is data and becomes one clean line.
    if value is None:
        return UNKNOWN
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return clean_message(value)
    return value


def render_table(report: Report) -> RenderableType:
    """Render a report for a terminal."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = []
    sections = layout(report)
    for section in (sections[name] for name in _ORDERS.get(report.status, _DONE)):
        # Text, never markup: brackets in a label or a message must not become styles.
        shown += (Text(clean_message(line)) for line in section.lines)
        if section.table is not None and section.table.narrow:
            shown.append(_narrow(section.table))
    return Group(*shown, *_places(report))


def _narrow(table: Table) -> RenderableType:
    """Return the columns of a table that fit a terminal."""
    places = [table.columns.index(name) for name in table.narrow]
    rows = ([clean_message(str(row[place])) for place in places] for row in table.rows)
    return render_columns(table.narrow, rows, table.narrow[:1], table.limit)


def _places(report: Report) -> list[RenderableType]:
    """Return the paths of the output, a line each, not folded: a folded path cannot be copied."""
    from rich.text import Text

    output = report.output
    places = (
        ("predictions", output.uri),
        ("quarantine", output.quarantine),
        ("report", output.report),
    )
    return [
        Text(printable(f"{name}: {place}"), no_wrap=True, overflow="ignore")
        for name, place in places
        if place
    ]


@functools.cache
def page_style() -> str:
    """Return the style of all pages: light or dark, as the browser prefers."""
    return Path(__file__).with_name("style.css").read_text("ascii")


def content_policy(body: str) -> str:
    """Return the policy of a page: it loads nothing but pictures that are part of it."""
    pictures = "; img-src data:" if "<img " in body else ""
    return f"default-src 'none'; style-src 'unsafe-inline'{pictures}"


def page_html(title: str, pieces: Iterable[str], sheet: str = "", more: Iterable[str] = ()) -> str:
    """Return a page.

    Args:
        title: Plain text.
        pieces: Escaped HTML, as of `table_html`.
        sheet: The sheet after them, as of `samples.sheet_html`.
        more: Further pieces after the sheet.
    """
    named = escape(clean_message(title))
    before, behind = (
        [f'<section class="scroll list" tabindex="0">{piece}</section>' for piece in group]
        for group in (pieces, more)
    )
    body = "\n".join([*before, sheet, *behind])
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{content_policy(body)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{named}</title>\n'
        f"<style>\n{page_style()}</style>\n</head>\n<body><main>\n<h1>{named}</h1>\n{body}\n"
        "</main></body>\n</html>\n"
    )
