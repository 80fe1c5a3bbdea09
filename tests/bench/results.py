"""Make a page of what throughput.py and text.py measured: `results.py build/bench.json ...`.

Reads the JSON on the last line of each file (or of stdin), and writes results/<date>.md beside this
file, or below `--folder`, with a chart of every document as an SVG of its own next to it; the page
is <date>-text.md or <date>-detect.md if all documents are of these.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
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
    "loader-detect",
    "ray-detect",
)
LIMIT_OF = {"auto-shrink": "limit-shrink", "fp32": "limit-fp32", "auto": "limit-auto"}
"""A system's own limit; the others take `limit`."""
TITLES = {
    "small": "Photos around 500 x 375",
    "large": "Photos of 6 to 18 megapixels",
    "text": "Passages of 3 to 500 words",
    "detect": "Photos around 500 x 375, detection",
}
OWN_PAGE = {"text", "detect"}
_STEADY = ("the second half of the rows", "what is left without starting up")


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
        picture = wanted.folder / chart_name(date, document)
        picture.write_text(draw(TITLES[document["kind"]], document["results"]))
    kinds = {document["kind"] for document in documents}
    own = f"-{kinds.pop()}" if len(kinds) == 1 and kinds <= OWN_PAGE else ""
    page = wanted.folder / f"{date}{own}.md"
    page.write_text("\n".join(page_lines(date, documents)) + "\n")
    print(page)


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
    title = TITLES[document["kind"]]
    yield ""
    yield f"## {title}"
    yield ""
    yield (
        f"{counted(document)}, {document['runs']} runs of each system in turn; medians, with the "
        "least and the most in brackets. `whole` counts the whole process, `steady` "
        f"{_STEADY[document['kind'] == 'text']}. `x peer` is the ratio to the fastest peer by the "
        "same measure, `of limit` to plain processes without Ray, storage and publishing."
    )
    yield ""
    yield f"![{title}]({chart_name(date, document)})"
    for model in dict.fromkeys(line["model"] for line in document["results"]):
        yield from model_lines(model, [r for r in document["results"] if r["model"] == model])
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
    yield ""
    yield f"### {model}"
    yield ""
    yield "| system | runs | whole rows/s | x peer | of limit | steady rows/s | x peer | of limit |"
    yield "|---|---|---|---|---|---|---|---|"
    for line in results:
        cells = [line["system"], line["chosen"]]
        for measure in ("whole", "steady"):
            cells += [figures(line[measure]), *ratios(line, measure, results)]
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


def figures(found: dict[str, float] | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.1f} ({found['min']:.1f} to {found['max']:.1f})"


def ratios(line: dict[str, Any], measure: str, results: list[dict[str, Any]]) -> list[str]:
    """The ratios to the fastest peer and to the limit; a limit has none, a peer's own is there."""
    rates = {r["system"]: r[measure]["median"] for r in results if r[measure]}
    mine = rates.get(line["system"])
    fastest = max((rates[peer] for peer in PEERS if peer in rates), default=None)
    limit = rates.get(LIMIT_OF.get(line["system"], ""), rates.get("limit"))
    if line["system"].startswith("limit"):
        limit = None
    return [ratio(mine, fastest), ratio(mine, limit)]


def ratio(mine: float | None, other: float | None) -> str:
    return f"{mine / other:.2f}" if mine and other else "-"


if __name__ == "__main__":
    main()
