"""Measure rows/s beside peers and the limit: `python tests/bench/throughput.py MODEL...`.

Same photos, same weights; the systems take turns, so that a slow minute meets all of them. What is
compared:

- `exact`: `pipeline run` in eager fp32.
- `fp32`, `auto`: with what `pipeline tune` chose in fp32, and in any precision.
- `auto-shrink`: `auto` with transform.shrink_on_load, for large photos.
- `loader`, `ray`, `daft`, `spark`: peers, eager fp32, as their documentation has it.
- `limit`, `limit-shrink`: plain processes with what `auto` chose and nothing around the work.

`whole` is rows/s of the whole process, `steady` those of the second half of the rows; ours cut
slices as a job does that says nothing, and a slice's rows count while they are computed. `--large`
takes photos of 6 to 18 megapixels instead of ones around 500 x 375. Prints lines, then one JSON
line, which `--out` writes to a file too; results.py makes a page of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine, today
from systems import LIMITS, OURS, Case, Unusable, run, tune, write_weights
from turns import in_turn, summarise, tell, usable

sys.path.insert(0, str(Path(__file__).parents[1]))
from large_photos import build_large
from support.inputs.photos import build_images

MODELS = ("efficientnet-lite0", "mobilenet_v3_large", "resnet18")
PEERS = ("loader", "ray", "daft", "spark")
SMALL = ("exact", "fp32", "auto", *PEERS, "limit")
LARGE = (*OURS, *PEERS, *LIMITS)


def main() -> None:
    wanted = parse()
    systems, skipped = usable(wanted.systems or (LARGE if wanted.large else SMALL))
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = folder / "images"
        build(images, wanted.photos, large=wanted.large)
        for model_name in wanted.models:
            own = folder / model_name
            own.mkdir()
            model = write_weights(own, model_name)
            case = Case(own, images, wanted.photos, model)
            results += compare(case, systems, wanted.runs, skipped)
    document = {
        "date": today(),
        "photos": wanted.photos,
        "kind": "large" if wanted.large else "small",
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--large", action="store_true", help="photos of 6 to 18 megapixels")
    parser.add_argument("--photos", type=int, help="2000, with --large 200")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=LARGE)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    wanted = parser.parse_args()
    wanted.photos = wanted.photos or (200 if wanted.large else 2000)
    return wanted


def build(images: Path, num_photos: int, *, large: bool) -> None:
    if large:
        build_large(images, num_photos, seed=1)
    else:
        build_images(images, num_photos, seed=1, num_bad=0)


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
    for names in (("fp32",), ("auto", "limit"), ("auto-shrink", "limit-shrink")):
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
