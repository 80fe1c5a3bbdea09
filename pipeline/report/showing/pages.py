"""A page of its own from the pieces that notebooks show: it loads nothing, and has no script."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from html import escape
from pathlib import Path

from pipeline.core.printable import clean_message


@functools.cache
def page_style() -> str:
    """Return the style of all pages: light or dark as the reader has it."""
    return Path(__file__).with_name("style.css").read_text("ascii")


def content_policy(body: str) -> str:
    """Return what a page may load: nothing, or if it has pictures those that are inside it."""
    pictures = "; img-src data:" if "<img " in body else ""
    return f"default-src 'none'; style-src 'unsafe-inline'{pictures}"


def page_html(title: str, pieces: Iterable[str], sheet: str = "", more: Iterable[str] = ()) -> str:
    """Return a page.

    Args:
        title: Plain text.
        pieces: HTML that is escaped already, such as `notebook.table_html` gives.
        sheet: What comes behind them, as `samples.sheet_html` gives it.
        more: Further pieces, behind the sheet.
    """
    named = escape(clean_message(title))
    before, behind = (
        [f'<section class="scroll list" tabindex="0">{piece}</section>' for piece in each]
        for each in (pieces, more)
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
