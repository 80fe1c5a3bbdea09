"""Measure rows/s beside peers and the limit: `python tests/bench/throughput.py MODEL...`.

Same rows, same weights; the systems take turns, so that a slow minute meets all of them. Models
classify photos; `minilm` embeds docstrings of the standard library, of 3 to 500 words. Compared are

- `exact`: `pipeline run` in eager fp32.
- `fp32`, `auto`: with what `pipeline tune` chose in fp32, and in any precision.
- if it is asked for, `plain`: `auto` with Ray as it comes, without the pipeline's patches.
- over photos `loader`, `ray`, `daft`, `spark`: peers, eager fp32, as their documentation has it.
- over photos `limit`: plain processes with what `auto` chose and nothing around the work.
- over texts `st-1`, `st`: sentence-transformers in one process, with one thread and with one a
  core; `st-pool`: its pool of processes, one a core; `ray-text`: Ray Data with it in a pool of
  actors; `daft-text`: Daft's `embed_text`.

`whole` is rows/s of the whole process, `steady` without starting up: ours by the report's streaming
wall without what it waited for actors and their models. Ray Data, Daft and Spark start theirs
within it. Prints lines, then one JSON line, which `--out` writes to a file too; results.py makes a
page of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from machine import machine, tell, today
from systems import LIMIT, MINILM, OURS, PLAIN, Case, Unusable, make_case, run, tune

MODELS = ("efficientnet-lite0", "mobilenet_v3_large", "resnet18")
OF_PHOTOS = (*OURS, "loader", "ray", "daft", "spark", LIMIT)
OF_TEXTS = (*OURS, "st-1", "st", "st-pool", "ray-text", "daft-text")


def main() -> None:
    wanted = parse()
    has_texts = wanted.models == [MINILM]
    known = OF_TEXTS if has_texts else OF_PHOTOS
    num_rows = wanted.rows or (20_000 if has_texts else 2_000)
    systems = [system for system in known if system in (wanted.systems or {*known} - {PLAIN})]
    skipped: dict[str, str] = {}
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for model in wanted.models:
            case = make_case(Path(folder), model, num_rows)
            results += compare(case, model, systems, wanted.runs, skipped)
    document = {
        "date": today(),
        "kind": "texts" if has_texts else "photos",
        "rows": num_rows,
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rows", type=int, help="2,000 photos, or 20,000 texts")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=sorted({*OF_PHOTOS, *OF_TEXTS}))
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    wanted = parser.parse_args()
    if MINILM in wanted.models and len(wanted.models) > 1:
        parser.error(f"{MINILM} takes other rows than the other models: measure it by itself")
    return wanted


def compare(
    case: Case, model: str, systems: list[str], num_runs: int, skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """Measure the systems in turn; one that fails is dropped, and `skipped` says why."""
    chosen = tune_all(case, model, systems, skipped)
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    for _ in range(num_runs):
        for system in systems:
            if f"{model} {system}" in skipped:
                continue
            try:
                result = run(system, case, chosen[system])
            except Unusable as error:
                skipped[f"{model} {system}"] = str(error)
                print(f"skipped {model} {system}: {error}", flush=True)
                continue
            runs[system].append(result)
            print(f"{model} {system} {json.dumps(result)}", flush=True)
    return [
        summarise(model, system, chosen[system], results)
        for system, results in runs.items()
        if results and f"{model} {system}" not in skipped
    ]


def summarise(model: str, system: str, chosen: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, and the least and the most, over the runs of one system."""
    startup = [run["startup"] for run in runs if "startup" in run]
    padding = [run["padding_pct"] for run in runs if "padding_pct" in run]
    line = {
        "model": model,
        "system": system,
        "chosen": chosen,
        "whole": spread(run["whole"] for run in runs),
        "steady": spread(run["steady"] for run in runs),
        "startup": {
            part: round(statistics.median(parts.get(part, 0.0) for parts in startup), 2)
            for part in dict.fromkeys(part for parts in startup for part in parts)
        },
        **({"padding_pct": round(statistics.mean(padding), 2)} if padding else {}),
    }
    print(json.dumps(line), flush=True)
    return line


def spread(values: Iterable[float]) -> dict[str, float]:
    known = sorted(values)
    figures = {"median": statistics.median(known), "min": known[0], "max": known[-1]}
    return {name: round(value, 2) for name, value in figures.items()}


def tune_all(case: Case, model: str, systems: list[str], skipped: dict[str, str]) -> dict[str, str]:
    """Let `pipeline tune` choose for those of ours that ask for it; say what each system runs."""
    chosen = dict.fromkeys(systems, "eager fp32 32")
    for names in (("fp32",), ("auto", PLAIN, LIMIT)):
        tuned = [name for name in names if name in systems]
        if not tuned:
            continue
        try:
            tuning = tune(case, names[0])
        except Unusable as error:
            print(f"{model}: {error}", flush=True)
            skipped.update({f"{model} {name}": str(error) for name in tuned})
            continue
        for trial in (*tuning["runtimes"], *tuning["batch_sizes"]):
            print(f"{model} {json.dumps(trial)}", flush=True)
        choice = f"{tuning['chosen']} {tuning['batch_size']}"
        print(f"{model} chosen: {choice}", flush=True)
        chosen.update(dict.fromkeys(tuned, choice))
    return chosen


if __name__ == "__main__":
    main()
