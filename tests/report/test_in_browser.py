"""Test pages in a headless Chromium: nothing is loaded or run, and everything can be reached."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.inputs.encoded import base_image, encode
from support.runs.published import Rows, publish_rows
from support.runs.report_examples import BARE, FULL, everywhere, report_of
from support.runs.sampled import publish_over
from support.servers.chromium import PROGRAM, Browser

import pipeline
from pipeline.operations.inspect import inspect
from pipeline.preprocessing.images.thumbnails import Thumbnail
from pipeline.published.output import Partition
from pipeline.report.render import to_html
from pipeline.report.showing.samples import Small, sheet_html
from pipeline.storage.store import Store

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PROGRAM, reason="no chromium is installed")]

HOSTILE = "</style><script>document.title='run'</script><img src=//x.invalid/a onerror=alert(1)>"
LONG = "a_name_without_any_place_to_break_it" * 9
WIDTHS = (390, 768, 1280)
PHOTO = encode(base_image(5, 640, 400), "JPEG")
CONTRAST = """
(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(
    v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim()) continue;
    const style = getComputedStyle(element), size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    const pair = [light(rgb(style.color)), light(ground(element))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < (isLarge ? 3 : 4.5))
      found.push(`${ratio.toFixed(2)} ${element.tagName}.${element.className}`);
  }
  return [...new Set(found)];
})()
"""
UNREACHABLE = """
[...document.querySelectorAll('*')].filter(
  each => each.scrollWidth > each.clientWidth + 1 && each.tabIndex < 0
    && ['auto', 'scroll'].includes(getComputedStyle(each).overflowX)
).map(each => each.outerHTML.slice(0, 80))
"""
FOCUSABLE = "document.querySelectorAll('a[href], [tabindex=\"0\"]').length"
FOCUSED = """
(() => {
  const all = [...document.querySelectorAll('a[href], [tabindex="0"]')];
  const style = getComputedStyle(document.activeElement);
  return [all.indexOf(document.activeElement), style.outlineStyle];
})()
"""
BROKEN = "[...document.images].filter(each => !each.naturalWidth).map(each => each.alt)"


def sheets() -> str:
    """Sheets of pictures with boxes and texts with entities, all names hostile."""
    picture = Thumbnail(encode(base_image(5, 176, 110), "JPEG"), 640, 400)
    tall = Thumbnail(encode(base_image(6, 40, 176), "JPEG"), 400, 1760)
    corners = ("x_min", "y_min", "x_max", "y_max")
    places = ((10, 10, 200, 390), (600, 300, 640, 400))
    boxes = [
        {"label": HOSTILE, "score": 0.5, **dict(zip(corners, place, strict=True))}
        for place in places
    ]
    text = f"{HOSTILE} Ada Lovelace met Charles Babbage in London. " * 4
    marks = [
        {"start": start, "end": end, "label": label, "score": 0.5}
        for start, end, label in ((90, 102, HOSTILE), (107, 122, "PER"))
    ]
    photos = [{"row_id": f"photos/{n}/{HOSTILE}", "detections": boxes} for n in range(8)]
    seen = {row["row_id"]: Small(tall if n % 3 else picture) for n, row in enumerate(photos)}
    odd = [{"row_id": LONG, "label": LONG}, {"row_id": "b", "label": "c"}]
    seen |= {LONG: Small(picture), "b": Small(problem=f"truncated: {HOSTILE}")}
    predicted = [{"row_id": "a", "entities": marks}, {"row_id": "b", "label": "x"}]
    texts = {"a": Small(texts=(text, LONG)), "b": Small(texts=("",))}
    problem = f"without the others: {HOSTILE}"
    pictures = sheet_html("Least certain", photos + odd, seen)
    return pictures + sheet_html("Texts", predicted, texts, problem)


def report_page(folder: Path) -> str:
    labels = [{"label": f"class {n}", "count": 1000 - n} for n in range(10)]
    over_time = {"bin_s": 2.0, "rows": [10, 30, 20, 60, 70], "actors": [1, 2, 2, 2, 3]}
    causes = [
        {"reason": "truncated", "stage": "decode", "message": f"JPEG ends early {n}",
         "num_rows": 9 - n, "row_id": f"photos/2026/11/{n}.jpg"} for n in range(3)
    ]  # fmt: skip
    facts = FULL | {"top_labels": labels, "over_time": over_time, "top_failures": causes}
    past = [
        report_of(facts, run_id=f"r-0{day}", partition=f"date=2026-11-{day}", wall_s=60.0 + day)
        for day in range(23, 10, -1)
    ]
    return to_html(report_of(facts), past, sheets())


def diff_page(folder: Path) -> str:
    kinds = tuple(f"{HOSTILE} {n}" for n in range(3))
    versions = []
    for edition, some in ((1, kinds), (2, (LONG, *kinds[1:]))):
        rows = Rows(edition=edition, kinds=some, fail_every=4 + edition)
        versions.append(publish_over(folder, rows, lambda row: PHOTO))
    pair = [Partition(version.store, version.layout, version.manifest, {}) for version in versions]
    pipeline.diff(*pair).to_html(folder / "diff.html")
    return (folder / "diff.html").read_text("utf-8")


def thousand_classes(folder: Path) -> str:
    kinds = tuple(f"class {n}" for n in range(1000))
    store = Store(str(folder / "out"))
    publish_rows(store, None, Rows(rows_per_slice=1000, kinds=kinds))
    publish_rows(store, None, Rows(rows_per_slice=1000, kinds=kinds[::-1], edition=2))
    pipeline.diff(store.url("")).to_html(folder / "diff.html")
    return (folder / "diff.html").read_text("utf-8")


def inspected(folder: Path) -> str:
    publish_over(folder, Rows(kinds=(HOSTILE, LONG)), lambda row: PHOTO)
    inspect(str(folder / "out"), html=folder / "inspect.html")
    return (folder / "inspect.html").read_text("utf-8")


PAGES: dict[str, Callable[[Path], str]] = {
    "report": report_page,
    "hostile": lambda folder: to_html(report_of(everywhere(HOSTILE)), (), sheets()),
    "long": lambda folder: to_html(report_of(everywhere(LONG))),
    "empty": lambda folder: to_html(report_of(BARE["published"])),
    "refused": lambda folder: to_html(report_of(BARE["refused"])),
    "diff": diff_page,
    "1,000 classes": thousand_classes,
    "inspect": inspected,
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.mark.parametrize("name", PAGES)
def test_a_page_can_be_read_and_reached_and_loads_nothing(
    browser: Browser, tmp_path: Path, name: str
):
    page = tmp_path / "page.html"
    page.write_text(PAGES[name](tmp_path), "utf-8")
    assert page.stat().st_size < 2**20
    for width_px in WIDTHS:
        for is_dark in (False, True):
            tab = browser.open(page, width_px, is_dark=is_dark)
            where = f"{name}, {width_px} px, {'dark' if is_dark else 'light'}"
            assert tab.requests() == [page.as_uri()], where
            assert tab.complaints() == [], where
            assert tab.evaluate("document.title") != "run", where
            assert tab.evaluate("document.scripts.length") == 0, where
            assert tab.evaluate(BROKEN) == [], where
            assert tab.evaluate(CONTRAST) == [], where
            assert tab.evaluate(UNREACHABLE) == [], where
            assert tab.evaluate("document.documentElement.scrollWidth") <= width_px, where
            reached = []
            for _ in range(tab.evaluate(FOCUSABLE)):
                tab.press("Tab", 9)
                reached.append(tab.evaluate(FOCUSED))
            assert [place for place, _ in reached] == [*range(len(reached))], where
            assert all(outline != "none" for _, outline in reached), where
            tab.close()
