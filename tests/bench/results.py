"""Make a page of what throughput.py and text.py measured.

`results.py build/bench.json ...` reads the JSON on the last line of each file (or of stdin), and
writes results/<date>.md beside this file, or below `--folder`, with a chart of every document as an
SVG of its own next to it. A page of texts alone is <date>-text.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart import draw

PEERS = (
    "loader",
    "ray",
    "daft",
    "spark",
    "st-1",
    "st",
    "st-pool",
    "ray-text",
    "daft-text",
)
LIMIT = "limit"


@dataclass(frozen=True)
class Kind:
    """What the page says of a kind of document."""

    title: str
    steady: str


KINDS = {
    "small": Kind("Photos around 500 x 375", "the second half of the rows"),
    "text": Kind("Passages of 3 to 500 words", "what is left without starting up"),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    wanted = parser.parse_args()
    texts = [path.read_text() for path in wanted.files] or [sys.stdin.read()]
    documents = [json.loads(text.splitlines()[-1]) for text in texts]
    date = max(document["date"] for document in documents)
    wanted.folder.mkdir(parents=True, exist_ok=True)
    for document in documents:
        kind = KINDS[document["kind"]]
        picture = wanted.folder / chart_name(date, document)
        picture.write_text(draw(kind.title, document["results"]))
    page = wanted.folder / page_name(date, {document["kind"] for document in documents})
    page.write_text("\n".join(page_lines(date, documents)) + "\n")
    print(page)


def page_name(date: str, kinds: set[str]) -> str:
    return f"{date}-text.md" if kinds == {"text"} else f"{date}.md"


def chart_name(date: str, document: dict[str, Any]) -> str:
    return f"{date}-{document['kind']}.svg"


def page_lines(date: str, documents: list[dict[str, Any]]) -> Iterator[str]:
    yield f"# Rows/s, {date}"
    yield ""
    yield from machine_lines(documents[0]["machine"])
    for document in documents:
        yield from document_lines(date, document)


def machine_lines(facts: dict[str, Any]) -> Iterator[str]:
    flags = ", ".join(facts["flags"]) or "none of those looked for"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"- Processor: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB memory"
    yield f"- Instruction sets: {flags}"
    yield f"- Versions: Python {facts['python']}, {versions}"


def document_lines(date: str, document: dict[str, Any]) -> Iterator[str]:
    kind, results = KINDS[document["kind"]], document["results"]
    yield ""
    yield f"## {kind.title}"
    yield ""
    without = "plain processes without Ray, storage and publishing"
    limit = f", `of limit` to {without}" if has_limit(results) else ""
    yield (
        f"{counted(document)}; {document['runs']} runs of each system in turn; medians, with the "
        "least and the most in brackets. `whole` counts the whole process, `steady` "
        f"{kind.steady}. `x peer` is the ratio to the fastest peer by the same measure{limit}."
    )
    yield ""
    yield f"![{kind.title}]({chart_name(date, document)})"
    for model in dict.fromkeys(line["model"] for line in results):
        yield from model_lines(model, [r for r in results if r["model"] == model])
    if document.get("differences"):
        yield from difference_lines(document["differences"])
    if document["skipped"]:
        yield ""
        yield "Not measured:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in document["skipped"].items())


def counted(document: dict[str, Any]) -> str:
    return f"{document['rows']} texts" if "rows" in document else f"{document['photos']} photos"


def difference_lines(differences: dict[str, dict[str, float]]) -> Iterator[str]:
    """How far our embeddings are from those of sentence-transformers."""
    yield ""
    yield "| beside sentence-transformers | largest difference of a number | smallest cosine |"
    yield "|---|---|---|"
    for system, found in differences.items():
        yield f"| {system} | {found['largest']:.1e} | {found['min_cosine']:.6f} |"


def model_lines(model: str, results: list[dict[str, Any]]) -> Iterator[str]:
    of_limit = has_limit(results)
    measured = [
        name
        for measure in ("whole", "steady")
        for name in (f"{measure} rows/s", "x peer", *(["of limit"] if of_limit else []))
    ]
    yield ""
    yield f"### {model}"
    yield ""
    yield f"| system | runs | {' | '.join(measured)} |"
    yield "|---|---|" + "---|" * len(measured)
    for line in results:
        cells = [line["system"], line["chosen"]]
        for measure in ("whole", "steady"):
            to_peer, to_limit = ratios(line, measure, results)
            cells += [figures(line[measure]), to_peer, *([to_limit] if of_limit else [])]
        yield f"| {' | '.join(cells)} |"
    padded = [f"{r['system']} {r['padding_pct']:.1f}%" for r in results if "padding_pct" in r]
    if padded:
        yield ""
        yield f"Padding, of all tokens that the model computes: {', '.join(padded)}."
    yield from start_up_lines(results)


def start_up_lines(results: list[dict[str, Any]]) -> Iterator[str]:
    """Seconds before the first row, by cause; parts that overlap count each for itself."""
    ours = [line for line in results if line["startup"]]
    if not ours:
        return
    parts = list(dict.fromkeys(part for line in ours for part in line["startup"]))
    yield ""
    yield f"| start-up, seconds | {' | '.join(parts)} |"
    yield "|---|" + "---|" * len(parts)
    for line in ours:
        values = [f"{line['startup'].get(part, 0.0):.1f}" for part in parts]
        yield f"| {line['system']} | {' | '.join(values)} |"


def has_limit(results: list[dict[str, Any]]) -> bool:
    return any(line["system"] == LIMIT for line in results)


def figures(found: dict[str, float] | None) -> str:
    """The median, and the least and the most; without decimals from 1,000 on."""
    if found is None:
        return "-"
    digits = 0 if found["median"] >= 1000 else 1
    median, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def ratios(line: dict[str, Any], measure: str, results: list[dict[str, Any]]) -> list[str]:
    """The ratios to the fastest peer and to the limit; the limit has none to itself."""
    rates = {r["system"]: r[measure]["median"] for r in results if r[measure]}
    mine = rates.get(line["system"])
    fastest = max((rates[peer] for peer in PEERS if peer in rates), default=None)
    limit = None if line["system"] == LIMIT else rates.get(LIMIT)
    return [ratio(mine, fastest), ratio(mine, limit)]


def ratio(mine: float | None, other: float | None) -> str:
    return f"{mine / other:.2f}" if mine and other else "-"


if __name__ == "__main__":
    main()
