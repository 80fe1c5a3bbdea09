"""Make a page of what throughput.py, text.py, tables.py and detect.py measured.

`results.py build/bench.json ...` reads the JSON on the last line of each file (or of stdin), and
writes results/<date>.md beside this file, or below `--folder`, with a chart of every document as an
SVG of its own next to it. If none is of photos through classifiers, the page is named after what
was measured, as in <date>-text.md or <date>-detect-tables.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart import draw, is_limit

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
    "loader-tables",
    "ray-tables",
)
LIMITS_OF = {
    "auto-shrink": ("limit-shrink",),
    "fp32": ("limit-fp32", "plain-fp32"),
    "auto": ("limit-auto", "plain-auto"),
}
"""A system's own limit; the others, and those whose own was not measured, take `limit`."""
_PLAIN_PROCESSES = "plain processes without Ray, storage and publishing"


@dataclass(frozen=True)
class Kind:
    """What the page says of a kind of document."""

    title: str
    steady: str = "the second half of the rows"
    limit: str = _PLAIN_PROCESSES
    has_own_page: bool = True
    """Whether the page is named after it."""
    has_own_scales: bool = False
    """Whether the chart draws each model by a scale of its own."""


KINDS = {
    "small": Kind("Photos around 500 x 375", has_own_page=False),
    "large": Kind("Photos of 6 to 18 megapixels", has_own_page=False),
    "text": Kind("Passages of 3 to 500 words", "what is left without starting up"),
    "detect": Kind("Photos around 500 x 375, detection"),
    "tables": Kind(
        "Tables through a network of two hidden layers of 256",
        "the second half of the rows, of `plain` and `loader` what is left without starting up",
        "`plain`: pyarrow batches into the same runtime in as many plain processes, which write "
        "Parquet",
        has_own_scales=True,
    ),
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
        drawn = draw(kind.title, document["results"], own_scales=kind.has_own_scales)
        picture.write_text(drawn)
    page = wanted.folder / page_name(date, {document["kind"] for document in documents})
    page.write_text("\n".join(page_lines(date, documents)) + "\n")
    print(page)


def page_name(date: str, kinds: set[str]) -> str:
    named = sorted(kinds) if all(KINDS[kind].has_own_page for kind in kinds) else []
    return "-".join([date, *named]) + ".md"


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
    limit = f", `of limit` to {kind.limit}" if has_limits(results) else ""
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
        own = table_difference_lines if document["kind"] == "tables" else text_difference_lines
        yield from own(document["differences"])
    if document["skipped"]:
        yield ""
        yield "Not measured:"
        yield ""
        yield from (f"- {name}: {reason}" for name, reason in document["skipped"].items())


def counted(document: dict[str, Any]) -> str:
    if "tables" in document:
        sizes = document["tables"]
        return ", ".join(f"{rows:,} rows of {features:,} features" for features, rows in sizes)
    return f"{document['rows']} texts" if "rows" in document else f"{document['photos']} photos"


def text_difference_lines(differences: dict[str, dict[str, float]]) -> Iterator[str]:
    """How far our embeddings are from those of sentence-transformers."""
    yield ""
    yield "| beside sentence-transformers | largest difference of a number | smallest cosine |"
    yield "|---|---|---|"
    for system, found in differences.items():
        yield f"| {system} | {found['largest']:.1e} | {found['min_cosine']:.6f} |"


def table_difference_lines(differences: dict[str, dict[str, float]]) -> Iterator[str]:
    """How far our numbers are from those of a peer or of `plain`, by model and system."""
    yield ""
    yield "| beside a peer or `plain`, row by row | system | largest difference of a number |"
    yield "|---|---|---|"
    for model, systems in differences.items():
        for system, largest in systems.items():
            yield f"| {model} | {system} | {largest:.1e} |"


def model_lines(model: str, results: list[dict[str, Any]]) -> Iterator[str]:
    of_limit = has_limits(results)
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


def has_limits(results: list[dict[str, Any]]) -> bool:
    return any(is_limit(line["system"]) for line in results)


def figures(found: dict[str, float] | None) -> str:
    """The median, and the least and the most; without decimals from 1,000 on."""
    if found is None:
        return "-"
    digits = 0 if found["median"] >= 1000 else 1
    median, least, most = (f"{found[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def ratios(line: dict[str, Any], measure: str, results: list[dict[str, Any]]) -> list[str]:
    """The ratios to the fastest peer and to the limit; a limit has none, a peer's own is there."""
    rates = {r["system"]: r[measure]["median"] for r in results if r[measure]}
    mine = rates.get(line["system"])
    fastest = max((rates[peer] for peer in PEERS if peer in rates), default=None)
    own = (*LIMITS_OF.get(line["system"], ()), "limit")
    limit = next((rates[name] for name in own if name in rates), None)
    return [ratio(mine, fastest), ratio(mine, None if is_limit(line["system"]) else limit)]


def ratio(mine: float | None, other: float | None) -> str:
    return f"{mine / other:.2f}" if mine and other else "-"


if __name__ == "__main__":
    main()
