"""What a GPU gives: `python tests/bench/gpu.py MODEL...`; with `--cpu` it runs without one.

Over photos, or passages for `minilm`; `detector` is a YOLOS as large as its smallest published one
for images of `--detector-px`. For every precision of `eager`, and of `compile` with `--compile`,
one actor: rows/s of the model alone, its batches on the device already, and of one decoder alone;
rows/s of the pipeline in the second half of its rows, and its share of what is possible: the model
alone, or all decoders if that is less; for which share of that half the card had nothing to
compute; the processor seconds of the whole machine; and how busy the card was, as nvidia-smi says.
Texts are in the same batches either way, sorted by length within a slice. With `--peers` Ray Data
as its documentation has it and Daft run classifiers of photos on the same device in fp32 and bf16.
Prints lines, then JSON, whose `skipped` says what failed, and why; `--page` writes a page of it,
too.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpu_alone import Watch, alone, decode_alone, idle_pct
from gpu_page import page_lines
from machine import machine, today
from safetensors.torch import load_file, save_file
from systems import Case, Unusable, missing, run_job, run_peer, write_weights
from text_batches import text_case
from torchvision.models import get_model
from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor
from turns import tell

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.photos import build_images
from support.models.minilm import Unreachable

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
MINILM, DETECTOR = "minilm", "detector"
MODELS = ("resnet50", "vit_b_16", MINILM, DETECTOR)
DETECTOR_PX = 640
MIN_SCORE = 0.1
PEERS = ("ray", "daft")
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
"""Precisions of the peers, and what torch calls them."""
_DECISION, _SPREAD = 10.0, 0.05


def measure(case: Case, runtime: str, precision: str, num_gpus: float) -> dict[str, Any]:
    """Run the pipeline once with one actor, and what it is held to by itself."""
    has_photos = case.columns["format"] == "images"
    decoded = decode_alone(case) if has_photos else None
    watch = Watch(is_gpu=num_gpus > 0)
    found = run_job(
        case,
        f"{runtime}-{precision}",
        {
            "model": {**case.model, "runtime": runtime, "precision": precision},
            "resources": {"num_gpus": num_gpus, "max_actors": 1},
        },
    )
    watched, steady = watch.stop(), found["steady"]
    model_alone = alone(case, runtime, precision, num_gpus, found)
    in_memory = model_alone.pop("rows_per_s")
    # Beside a card decoders have all cores but the actor's.
    decoders = max(1, (os.cpu_count() or 1) - 1) if num_gpus else 1
    possible = in_memory if decoded is None else min(in_memory, decoders * decoded)
    line = {
        "model": case.folder.name,
        "system": "ours",
        "runtime": runtime,
        "precision": precision,
        "decoded_rows_per_s": decoded and round(decoded, 1),
        "in_memory_rows_per_s": round(in_memory, 1),
        "whole_rows_per_s": round(found["whole"], 1),
        "steady_rows_per_s": steady and round(steady, 1),
        "share_of_in_memory": steady and round(steady / in_memory, 3),
        "share_of_possible": steady and round(steady / possible, 3),
        "idle_pct": idle_pct(Path(found["out"])),
        **watched,
        **(of_texts(found, in_memory, model_alone["tokens_per_row"]) if model_alone else {}),
        "startup": found["startup"],
    }
    print(json.dumps(line), flush=True)
    return line


def of_texts(found: dict[str, Any], in_memory: float, tokens_per_row: float) -> dict[str, Any]:
    """Return what only texts have; tokens/s do not count padding."""
    steady = found["steady"]
    return {
        "tokens_per_row": tokens_per_row,
        "in_memory_tokens_per_s": round(in_memory * tokens_per_row),
        "steady_tokens_per_s": steady and round(steady * tokens_per_row),
        "padding_pct": found["padding_pct"],
    }


def measure_peer(case: Case, system: str, precision: str) -> dict[str, Any]:
    """Run a peer once, on the device that PEERS_DEVICE names."""
    os.environ["PEERS_DTYPE"] = DTYPES[precision]
    found = run_peer(system, case)
    line = {
        "model": case.folder.name,
        "system": system,
        "precision": precision,
        "whole_rows_per_s": round(found["whole"], 1),
        "steady_rows_per_s": found["steady"] and round(found["steady"], 1),
    }
    print(json.dumps(line), flush=True)
    return line


def make_case(folder: Path, name: str, num_rows: int, detector_px: int) -> Case:
    """Make the rows of a model, and those of all that take photos once.

    Raises:
        Unreachable: The model cannot be downloaded.
    """
    own, images = folder / name, folder / "images"
    own.mkdir()
    if name == MINILM:
        return text_case(own, num_rows)
    if not images.exists():
        build_images(images, num_rows, seed=1, num_bad=0)
    if name == DETECTOR:  # as many rows of its size would be 630 MB a slice
        return Case(own, images, num_rows, detector(own, detector_px))
    return Case(own, images, num_rows, decided(write_weights(own, name)))


def decided(model: dict[str, Any]) -> dict[str, Any]:
    """Let one class of random weights lead and the others differ little; return the model section.

    Random logits are nearly equal or far apart, so that labels or scores of half precision are
    others: the gate that holds predictions to fp32 would refuse that.
    """
    module = get_model(model["name"], weights=None).eval()
    module.load_state_dict(load_file(model["weights"]))
    head = [each for each in module.modules() if isinstance(each, torch.nn.Linear)][-1]
    with torch.inference_mode():
        spread = float(module(torch.randn(4, 3, 224, 224)).std())
    with torch.no_grad():
        head.weight *= _SPREAD / max(_SPREAD, spread)
        head.bias[0] += _DECISION
    save_file(module.state_dict(), model["weights"])
    return model


def detector(folder: Path, size_px: int) -> dict[str, Any]:
    """Write a YOLOS with seeded weights, and its processor to square images of a size.

    Returns:
        The model section of a job.
    """
    path = folder / "directory"
    torch.manual_seed(0)
    config = YolosConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=[size_px, size_px],
    )
    YolosForObjectDetection(config).save_pretrained(path)
    size = {"height": size_px, "width": size_px}
    YolosImageProcessor(size=size, do_pad=False).save_pretrained(path)
    return {"path": str(path), "task": "detect", "min_score": MIN_SCORE}


def main() -> None:
    wanted = parse()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here: run this where there is one, or try it with --cpu")
    os.environ["PEERS_DEVICE"] = "cpu" if wanted.cpu else "cuda"
    results, skipped = list[dict[str, Any]](), dict[str, str]()
    with tempfile.TemporaryDirectory() as folder:
        for model in wanted.models:
            try:
                case = make_case(Path(folder), model, wanted.rows, wanted.detector_px)
            except Unreachable as error:
                skip(skipped, model, error)
                continue
            for runtime, precision in ways(wanted):
                try:
                    found = measure(case, runtime, precision, 0.0 if wanted.cpu else 1.0)
                except Unusable as error:
                    skip(skipped, f"{model} {runtime} {precision}", error)
                    continue
                results.append(found)
            for system, precision in peers(wanted, case):
                try:
                    if absent := missing(system):
                        raise Unusable(absent)
                    results.append(measure_peer(case, system, precision))
                except Unusable as error:
                    skip(skipped, f"{model} {system} {precision}", error)
    document = {
        "date": today(),
        "machine": machine(),
        "gpu": None if wanted.cpu else torch.cuda.get_device_name(),
        "rows": wanted.rows,
        "results": results,
        "skipped": skipped,
    }
    if wanted.page:
        wanted.page.parent.mkdir(parents=True, exist_ok=True)
        wanted.page.write_text("\n".join(page_lines(document)) + "\n")
    tell(document, wanted.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--rows", type=int, default=20_000, help="photos, or passages")
    parser.add_argument("--detector-px", type=int, default=DETECTOR_PX, help="sides of its images")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--cpu", action="store_true", help="try the script without a GPU")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="measure these too")
    parser.add_argument("--out", type=Path, help="also write the JSON line to this file")
    parser.add_argument("--page", type=Path, help="also write a page of it to this file")
    return parser.parse_args()


def ways(wanted: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield runtime and precision."""
    yield from itertools.product(
        ("eager", "compile") if wanted.compile else ("eager",),
        ("fp32",) if wanted.cpu else PRECISIONS,
    )


def peers(wanted: argparse.Namespace, case: Case) -> Iterator[tuple[str, str]]:
    """Yield peer and precision; their programs are for classifiers of photos."""
    if "weights" in case.model:
        yield from itertools.product(wanted.peers, ("fp32",) if wanted.cpu else DTYPES)


def skip(skipped: dict[str, str], what: str, error: Exception) -> None:
    skipped[what] = str(error)
    print(f"skipped {what}: {error}", flush=True)


if __name__ == "__main__":
    main()
