"""Measure rows/s of a detector beside peers: `python tests/bench/detect.py`.

A YOLOS of transformers with random weights, as large as its smallest published one, at 320 x 320 px
over photos around 500 x 375; the systems take turns. What is compared: `exact`, `fp32` and `auto`
as throughput.py has them; `loader-detect`, a DataLoader with a worker a core and the library's own
processor and post-processing, and `ray-detect`, Ray Data with the same in a pool of actors. `whole`
is rows/s of the whole process, `steady` those of the second half of the rows. Prints lines, then
one JSON line, which `--out` writes to a file too; results.py makes a page of it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import machine, today
from peer_detect import MIN_SCORE
from systems import OURS, Case, run_job, run_peer, sections_of
from tuned import Tuned
from turns import in_turn, summarise, tell, usable

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.inputs.photos import build_images

MODEL = "yolos-tiny-320"
SYSTEMS = ("exact", "fp32", "auto", "loader-detect", "ray-detect")
SIZE_PX = 320


def main() -> None:
    wanted = parse()
    systems, skipped = usable(wanted.systems)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_images(folder / "images", wanted.photos, seed=1, num_bad=0)
        write_detector(folder / "detector", SIZE_PX)
        model = {"path": str(folder / "detector"), "task": "detect", "min_score": MIN_SCORE}
        case = Case(folder, folder / "images", wanted.photos, model)
        tuned = Tuned(case, MODEL, {})
        tuned.tune(systems, skipped)
        runs = in_turn(systems, wanted.runs, lambda system: run(case, system), skipped, MODEL)
        results = [
            summarise(MODEL, system, tuned.said(system), found) for system, found in runs.items()
        ]
    document = {
        "date": today(),
        "photos": wanted.photos,
        "kind": "detect",
        "runs": wanted.runs,
        "machine": machine(),
        "results": results,
        "skipped": skipped,
    }
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=SYSTEMS)
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    return parser.parse_args()


def write_detector(folder: Path, size_px: int) -> None:
    """Write a YOLOS with seeded weights, and its processor to square images of a size."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[size_px, size_px],
    )
    YolosForObjectDetection(config).save_pretrained(folder)
    size = {"height": size_px, "width": size_px}
    YolosImageProcessor(size=size, do_pad=False).save_pretrained(folder)


def run(case: Case, system: str) -> dict[str, Any]:
    """Run a system once.

    Raises:
        Unusable: It failed.
    """
    if system in OURS:
        return run_job(case, system, sections_of(case, system))
    return run_peer(system, case)


if __name__ == "__main__":
    main()
