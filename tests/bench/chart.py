"""Draw rows/s as horizontal bars, by model and system, as a small SVG.

The dark bar is `whole`, the whole process; the pale one behind it is `steady`, without starting up.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _LEFT, _RIGHT = 720, 130, 90
_BAR, _GAP, _HEAD, _TOP = 16, 6, 30, 56
_DIGIT = 7
"""Of a figure beside a bar, in px."""
_OURS, _LIMIT, _PEER = ("#1b6ca8", "#a9cde6"), ("#4d4d4d", "#c9c9c9"), ("#b3632b", "#e8c4ab")


def draw(title: str, results: list[dict[str, Any]]) -> str:
    """Return the SVG of the results of one document.

    Args:
        title: Above the bars.
        results: Its lines, as turns.summarise has them.
    """
    models = list(dict.fromkeys(line["model"] for line in results))
    room = _WIDTH - _LEFT - max([_RIGHT, *(_DIGIT * len(shown(line)) + 10 for line in results)])
    body: list[str] = []
    y = _TOP
    most = max(top(line) for line in results)
    for model in models:
        body.append(text(8, y + 18, model, weight="bold"))
        y += _HEAD
        for line in (line for line in results if line["model"] == model):
            body += bar(line, y, room / most)
            y += _BAR + _GAP
    height = y + 10
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
    )
    background = f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>'
    legend = "rows/s, longer is faster; dark: the whole process, pale: without starting up"
    words = [text(8, 22, title, weight="bold", size=15), text(8, 42, legend)]
    return "\n".join([head, background, *words, *body, "</svg>"]) + "\n"


def top(line: dict[str, Any]) -> float:
    return max(line[measure]["median"] for measure in ("whole", "steady"))


def shown(line: dict[str, Any]) -> str:
    """The figures beside a bar."""
    return " / ".join(f"{line[measure]['median']:,.0f}" for measure in ("whole", "steady"))


def bar(line: dict[str, Any], y: int, scale: float) -> Iterator[str]:
    dark, pale = colours(line["system"])
    for measure, colour, inset in (("steady", pale, 0), ("whole", dark, 3)):
        width = line[measure]["median"] * scale
        yield (
            f'<rect x="{_LEFT}" y="{y + inset}" width="{width:.1f}" '
            f'height="{_BAR - 2 * inset}" fill="{colour}"/>'
        )
    yield text(_LEFT - 8, y + 12, line["system"], anchor="end")
    yield text(_LEFT + top(line) * scale + 6, y + 12, shown(line))


def colours(system: str) -> tuple[str, str]:
    if system == "limit":
        return _LIMIT
    return _OURS if system.startswith(("exact", "fp32", "auto")) else _PEER


def text(
    x: float, y: float, words: str, *, weight: str = "normal", size: int = 12, anchor: str = "start"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-weight="{weight}" font-size="{size}" '
        f'text-anchor="{anchor}" fill="#222222">{escape(words)}</text>'
    )
