"""The pages that results.py makes, as its command makes them, of small documents."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

RESULTS = Path(__file__).with_name("results.py")
DATE = "2026-11-27"
MACHINE = {
    "cpu": "Some CPU",
    "cores": 2,
    "flags": ["avx2"],
    "memory_gib": 23.5,
    "python": "3.11.7",
    "versions": {"ray": "2.60.0"},
}


def spread(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.9 * median, "max": 1.1 * median}


def line(
    model: str, system: str, whole: float, steady: float | None, **more: Any
) -> dict[str, Any]:
    """A line as turns.summarise has it."""
    return {
        "model": model,
        "system": system,
        "chosen": "eager fp32",
        "whole": spread(whole),
        "steady": None if steady is None else spread(steady),
        "startup": {},
        **more,
    }


def document(kind: str, results: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    said = {"date": DATE, "kind": kind, "runs": 3, "machine": MACHINE, "skipped": {}, **more}
    return {**said, "results": results}


PHOTOS = document(
    "small",
    [
        line("resnet18", "exact", 20_000, 25_000, startup={"ray_start": 1.5, "model_load": 0.25}),
        line("resnet18", "fp32", 30_000, 44_000, startup={"ray_start": 1.25}),
        line("resnet18", "ray", 10_000, 11_000),
        line("resnet18", "limit", 60_000, 55_000),
        line("mobilenet", "exact", 500_000, 1_250_000.4),
        line("mobilenet", "loader", 100_000, None),
        line("mobilenet", "ray", 250_000, 500_000),
    ],
    photos=2000,
    skipped={"mobilenet fp32": "pipeline tune: no"},
)
TEXT = document(
    "text",
    [line("minilm", "auto", 100, 120, padding_pct=8.8), line("minilm", "st", 50, 60)],
    rows=6000,
    differences={"auto": {"largest": 1.5e-3, "min_cosine": 0.999965}},
)


def make(folder: Path, *documents: dict[str, Any]) -> Path:
    """Return the page of documents, of which there is one a file."""
    files = [folder / f"bench-{index}.json" for index in range(len(documents))]
    for file, each in zip(files, documents, strict=True):
        file.write_text(f"what a script prints before\n{json.dumps(each)}\n")
    command = [sys.executable, RESULTS, *files, "--folder", folder / "results"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return Path(done.stdout.strip())


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the first table at or below a line that begins with these words."""
    lines = page.read_text().splitlines()
    start = next(n for n, each in enumerate(lines) if f"{each} ".startswith(f"{heading} "))
    table = next(number for number in range(start, len(lines)) if lines[number].startswith("|"))
    found = []
    for each in lines[table:]:
        if not each.startswith("|"):
            break
        found.append([cell.strip() for cell in each.strip("|").split("|")])
    return [found[0], *found[2:]]


def test_rates_have_their_spread_the_factor_to_a_peer_and_the_share_of_the_limit(tmp_path):
    page = make(tmp_path, PHOTOS)
    measures = ["whole rows/s", "x peer", "of limit", "steady rows/s", "x peer", "of limit"]
    head, exact, fp32, ray, limit = rows(page, "### resnet18")
    assert head == ["system", "runs", *measures]
    of_exact = ["2.00", "0.33", "25,000 (22,500 to 27,500)", "2.27", "0.45"]
    assert exact == ["exact", "eager fp32", "20,000 (18,000 to 22,000)", *of_exact]
    assert [fp32[0], *fp32[3:5], *fp32[6:]] == ["fp32", "3.00", "0.50", "4.00", "0.80"]
    assert [ray[0], *ray[3:5], *ray[6:]] == ["ray", "1.00", "0.17", "1.00", "0.20"]
    assert [limit[0], *limit[3:5], *limit[6:]] == ["limit", "6.00", "-", "5.00", "-"]


def test_the_page_says_how_many_rows_the_start_and_what_was_not_measured(tmp_path):
    page = make(tmp_path, PHOTOS)
    text = page.read_text()
    assert "2000 photos; 3 runs of" in text
    assert rows(page, "| start-up, seconds")[1:] == [
        ["exact", "1.5", "0.2"],
        ["fp32", "1.2", "0.0"],
    ]
    assert text.endswith("\nNot measured:\n\n- mobilenet fp32: pipeline tune: no\n")


def test_systems_keep_their_order_and_one_without_a_steady_state_has_none(tmp_path):
    page = make(tmp_path, PHOTOS)
    _, *systems = rows(page, "### mobilenet")
    assert [cells[0] for cells in systems] == ["exact", "loader", "ray"]
    assert systems[1][4:] == ["-", "-"]


def test_texts_have_no_limit_but_padding_and_how_close_their_embeddings_are(tmp_path):
    page = make(tmp_path, TEXT)
    head, auto, _ = rows(page, "### minilm")
    assert head == ["system", "runs", "whole rows/s", "x peer", "steady rows/s", "x peer"]
    assert auto[2:] == ["100.0 (90.0 to 110.0)", "2.00", "120.0 (108.0 to 132.0)", "2.00"]
    assert "that the model computes: auto 8.8%." in page.read_text()
    assert rows(page, "| beside sentence-transformers")[1] == ["auto", "1.5e-03", "0.999965"]


@pytest.mark.parametrize(
    ("documents", "name"),
    [
        ((TEXT,), f"{DATE}-text.md"),
        ((PHOTOS,), f"{DATE}.md"),
        ((PHOTOS, TEXT), f"{DATE}.md"),
    ],
)
def test_one_page_takes_several_documents_each_with_a_chart(documents, name, tmp_path):
    page = make(tmp_path, *documents)
    assert page.name == name
    for each in documents:
        chart = f"{DATE}-{each['kind']}.svg"
        assert f"]({chart})" in page.read_text()
        ElementTree.fromstring((page.parent / chart).read_text())


def test_bars_and_their_figures_stay_within_the_picture(tmp_path):
    page = make(tmp_path, PHOTOS)
    svg = ElementTree.fromstring((page.parent / f"{DATE}-small.svg").read_text())
    name = "{http://www.w3.org/2000/svg}"
    bars = [each for each in svg.iter(f"{name}rect") if each.get("x") == "130"]
    assert len(bars) == 2 * len(PHOTOS["results"]) - 1
    assert "#4d4d4d" in {each.get("fill") for each in bars}, "the limit has a colour of its own"
    texts = {each.text: float(each.get("x", "0")) for each in svg.iter(f"{name}text")}
    label = "500,000 / 1,250,000"
    assert texts[label] + 7 * len(label) < 720
