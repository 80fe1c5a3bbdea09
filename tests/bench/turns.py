"""Let systems take turns, so that a slow minute meets all of them, and sum their runs up."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from systems import Unusable


def in_turn(
    systems: Iterable[str],
    num_runs: int,
    run: Callable[[str], dict[str, Any]],
    skipped: dict[str, str],
    model: str,
) -> dict[str, list[dict[str, Any]]]:
    """Measure the systems in turn.

    Args:
        systems: Their names.
        num_runs: Runs of each.
        run: Runs a system once, and returns `whole`, `steady` and more.
        skipped: `model system` -> why it cannot run; one that fails is added.
        model: Of all runs.

    Returns:
        System -> its runs, without those that failed.
    """
    runs: dict[str, list[dict[str, Any]]] = {system: [] for system in systems}
    for _ in range(num_runs):
        for system in runs:
            if f"{model} {system}" in skipped:
                continue
            try:
                result = run(system)
            except Unusable as error:
                skipped[f"{model} {system}"] = str(error)
                print(f"skipped {model} {system}: {error}", flush=True)
                continue
            runs[system].append(result)
            print(f"{model} {system} {json.dumps(result)}", flush=True)
    return {
        system: results
        for system, results in runs.items()
        if results and f"{model} {system}" not in skipped
    }


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


def tell(document: dict[str, Any], out: Path | None) -> None:
    """Print a document as one JSON line, and write it to a file if one is named."""
    line = json.dumps(document)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n")
    print(line)
