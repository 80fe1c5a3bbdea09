"""Make a page of the results of throughput.py.

`results.py build/bench.json ...` reads the JSON on the last line of each file, and writes
results/<date>-<kind>.md beside this file, or below `--folder`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from systems import LIMIT, OURS

TITLES = {"photos": "Photos around 500 x 375", "texts": "Passages of 3 to 500 words"}
MEASURES = ("whole", "steady")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "results")
    wanted = parser.parse_args()
    wanted.folder.mkdir(parents=True, exist_ok=True)
    for file in wanted.files:
        document = json.loads(file.read_text().splitlines()[-1])
        page = wanted.folder / f"{document['date']}-{document['kind']}.md"
        page.write_text("\n".join(page_lines(document)) + "\n")
        print(page)


def page_lines(document: dict[str, Any]) -> Iterator[str]:
    results = document["results"]
    yield from (f"# Rows/s, {document['date']}", "")
    yield from machine_lines(document["machine"])
    yield from ("", f"## {TITLES[document['kind']]}", "")
    yield (
        f"{document['rows']} rows; {document['runs']} runs of each system in turn; medians, with "
        "the least and the most in brackets. `whole` counts the whole process, `steady` what is "
        "left without starting up (Ray Data, Daft and Spark start their workers within it). "
        "`x peer` is the ratio to the fastest peer by the same measure, `of limit` to plain "
        "processes without Ray, storage and publishing."
    )
    for model in dict.fromkeys(line["model"] for line in results):
        yield from model_lines(model, [line for line in results if line["model"] == model])
    if document["skipped"]:
        yield from ("", "Not measured:", "")
        yield from (f"- {name}: {reason}" for name, reason in document["skipped"].items())


def machine_lines(facts: dict[str, Any]) -> Iterator[str]:
    flags = ", ".join(facts["flags"]) or "none of those looked for"
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    yield f"- Processor: {facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB memory"
    yield f"- Instruction sets: {flags}"
    yield f"- Versions: Python {facts['python']}, {versions}"


def model_lines(model: str, results: list[dict[str, Any]]) -> Iterator[str]:
    rates = {name: {line["system"]: line[name]["median"] for line in results} for name in MEASURES}
    columns = [name for measure in MEASURES for name in (f"{measure} rows/s", "x peer", "of limit")]
    rows = []
    for line in results:
        rows.append([line["system"], line["chosen"]])
        for name in MEASURES:
            rows[-1] += [figures(line[name]), *ratios(line["system"], rates[name])]
    yield from ("", f"### {model}", "")
    yield from table_lines(["system", "runs", *columns], rows)
    padded = [f"{r['system']} {r['padding_pct']:.1f}%" for r in results if "padding_pct" in r]
    if padded:
        yield from ("", f"Padding, of all tokens that the model computes: {', '.join(padded)}.")
    ours = [line for line in results if line["startup"]]
    if ours:  # seconds before the first row, by cause; parts overlap
        parts = list(dict.fromkeys(part for line in ours for part in line["startup"]))
        yield ""
        yield from table_lines(
            ["start-up, seconds", *parts],
            [[r["system"], *(f"{r['startup'].get(p, 0.0):.1f}" for p in parts)] for r in ours],
        )


def table_lines(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(cells)} |" for cells in rows)


def figures(spread: dict[str, float]) -> str:
    """The median, and the least and the most; without decimals from 1,000 on."""
    digits = 0 if spread["median"] >= 1000 else 1
    median, least, most = (f"{spread[name]:,.{digits}f}" for name in ("median", "min", "max"))
    return f"{median} ({least} to {most})"


def ratios(system: str, rates: dict[str, float]) -> list[str]:
    """The ratios to the fastest peer and to the limit; the limit has none to itself."""
    fastest = max(
        (rates[peer] for peer in rates if peer not in (*OURS, LIMIT)),
        default=None,
    )
    limit = None if system == LIMIT else rates.get(LIMIT)
    return [f"{rates[system] / other:.2f}" if other else "-" for other in (fastest, limit)]


if __name__ == "__main__":
    main()
