"""A page of its own from the pieces that notebooks show: it loads nothing, and has no script."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from pipeline.core.printable import clean_message

_STYLE = """
:root { --page: #fbfaf8; --ink: #22252b; --soft: #5d626b; --line: #e4e2dc; }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --ink: #e2e4e8; --soft: #a4aab4; --line: #2f333a; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; } h4 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
div { overflow-x: auto; } table { border-collapse: collapse; width: 100%; margin-bottom: 1rem; }
th, td { text-align: left; padding: .3rem .75rem .3rem 0; border-top: 1px solid var(--line);
  vertical-align: top; }
thead th, caption { color: var(--soft); font-weight: 500; font-size: .86rem; text-align: left; }
"""


def page_html(title: str, pieces: Iterable[str]) -> str:
    """Return a page, light or dark as the reader has it.

    Args:
        title: Plain text.
        pieces: HTML that is escaped already, such as `notebook.table_html` gives.
    """
    named = escape(clean_message(title))
    body = "\n".join(f'<div tabindex="0">{piece}</div>' for piece in pieces)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{named}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body><main>\n<h1>{named}</h1>\n{body}\n</main></body>\n"
        "</html>\n"
    )
