"""Measure rows/s beside peers and the limit: `python tests/bench/throughput.py MODEL...`.

Same photos, same weights; the systems take turns, so that a slow minute meets all of them. What is
compared:

- `exact`: `pipeline run` in eager fp32.
- `fp32`, `auto`: with what `pipeline tune` chose in fp32, and in any precision.
- `loader`, `ray`, `daft`, `spark`: peers, eager fp32, as their documentation has it.
- `limit`: plain processes with what `auto` chose and nothing around the work.

`whole` is rows/s of the whole process, `steady` those of the second half of the rows; ours cut
slices as a job does that says nothing, and a slice's rows count while they are computed. Prints
lines, then one JSON line, which `--out` writes to a file too; results.py makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine, today
from systems import Case, Unusable, run, tune, write_weights
from turns import in_turn, summarise, tell, usable

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.photos import build_images

MODELS = ("efficientnet-lite0", "mobilenet_v3_large", "resnet18")
PEERS = ("loader", "ray", "daft", "spark")
SYSTEMS = ("exact", "fp32", "auto", *PEERS, "limit")


def main() -> None:
    wanted = parse()
    systems, skipped = usable(wanted.systems)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        build_images(images, wanted.photos, seed=1, num_bad=0)
        for model_name in wanted.models:
            own = folder / model_name
            own.mkdir()
            model = write_weights(own, model_name)
            case = Case(own, images, wanted.photos, model)
            results += compare(case, systems, wanted.runs, skipped)
    document = {
        "date": today(),
        "photos": wanted.photos,
        "kind": "small",
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


def compare(
    case: Case, systems: list[str], num_runs: int, skipped: dict[str, str]
) -> list[dict[str, Any]]:
    """Measure the systems in turn; one that fails is dropped, and `skipped` says why."""
    model = case.model["name"]
    chosen = tune_all(case, systems, skipped)
    runs = in_turn(
        systems, num_runs, lambda system: run(system, case, chosen[system]), skipped, model
    )
    return [summarise(model, system, chosen[system], found) for system, found in runs.items()]


def tune_all(case: Case, systems: list[str], skipped: dict[str, str]) -> dict[str, str]:
    """Let `pipeline tune` choose for those of ours that ask for it; say what each system runs."""
    chosen = dict.fromkeys(systems, "eager fp32 32")
    for names in (("fp32",), ("auto", "limit")):
        tuned = [name for name in names if name in systems]
        if not tuned:
            continue
        try:
            found = tune(case, names[0])
        except Unusable as error:
            print(f"{case.model['name']}: {error}", flush=True)
            skipped.update({f"{case.model['name']} {name}": str(error) for name in tuned})
            continue
        for trial in (*found["runtimes"], *found["batch_sizes"]):
            print(f"{case.model['name']} {json.dumps(trial)}", flush=True)
        choice = f"{found['chosen']} {found['batch_size']}"
        print(f"{case.model['name']} chosen: {choice}", flush=True)
        chosen.update(dict.fromkeys(tuned, choice))
    return chosen


if __name__ == "__main__":
    main()
