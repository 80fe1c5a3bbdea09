"""The steps of gpu_hour.py, each a function; run as `gpu_steps.py STEP`, prints one JSON line."""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from gpu_alone import idle_pct, rows_per_s
from gpu_hour import FAIL, PASS
from gpu_hour_models import POISON
from systems import BENCH, ROOT, Case, Unusable, run_job, run_pipeline, write_weights

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.inputs.photos import build_images
from support.runs.cli import command, environment
from support.runs.jobs import job_over
from support.runs.predicting import images, predictor, rows_of

from pipeline.core.errors import JobError

FIGURE, NOT_HERE = "figure", "not here"
_SPIN_SHARE = 0.3
"""Of a core, for launching and gathering; a wait that spins takes all of one."""
_OWN = {"PIPELINE_ALLOW_IMPORT": "gpu_hour_models"}
Said = tuple[str, str]
"""Verdict, and what was found."""


def facts(wanted: argparse.Namespace) -> Said:
    code = subprocess.run(command("doctor"), env=environment(), capture_output=True, check=False)
    said = [f"torch {torch.__version__}, CUDA {torch.version.cuda}"]
    said += [f"doctor exits with {code.returncode}"]
    said += [f"{name} {shutil.which(name) or 'missing'}" for name in ("gcc", "nvidia-smi")]
    if wanted.cpu:
        return FIGURE, "; ".join(said)
    major, minor = torch.cuda.get_device_capability()
    arch, known = f"sm_{major}{minor}", torch.cuda.get_arch_list()
    said += [torch.cuda.get_device_name(), f"{arch} among {', '.join(known)}"]
    is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    said += [f"bf16 {'in hardware' if is_fast else 'emulated'}"]
    # A kernel of the same generation serves its later members, too.
    fits = any(each.startswith(f"sm_{major}") for each in known)
    return PASS if fits and not code.returncode else FAIL, "; ".join(said)


def tests(wanted: argparse.Namespace) -> Said:
    folders = ["tests/inference", "tests/preprocessing", "tests/models"]
    program = [sys.executable, "-m", "pytest", "-n0", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*program, *folders], cwd=ROOT, capture_output=True, check=False, text=True
    )
    last = done.stdout.strip().splitlines()[-1].strip("= ")
    is_done = done.returncode == 0 and (wanted.cpu or "passed" in last)
    return PASS if is_done else FAIL, last


def sticky(wanted: argparse.Namespace) -> Said:
    """Run three slices; one row of the middle one loses the context."""
    rows = 3 * 64
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        first = np.ones(rows, np.float32)
        first[rows // 2] = POISON
        table = pa.table({"id": np.arange(rows), "x": first, "y": np.ones(rows, np.float32)})
        pq.write_table(table, folder / "in" / "0.parquet")
        columns = {"format": "parquet", "features": ["x", "y"], "pass_through": ["id"]}
        model = {"factory": "gpu_hour_models:poisoned", "task": "regress"}
        job = Case(folder, folder / "in", rows, model, 64, columns).job(
            "sticky",
            folder / "out",
            resources={"num_gpus": 0 if wanted.cpu else 1, "max_actors": 1},
            gates={"constant": {"mode": "off"}},
        )
        report = run_pipeline("run", job, "--quiet", env=_OWN)
    lost = {reason: count for reason, count in report["reasons"].items() if count}
    return PASS if sum(lost.values()) == 1 else FAIL, f"{rows} rows, quarantined: {lost}"


def races(wanted: argparse.Namespace) -> Said:
    """Predict small batches again and again; the CPU's answer is right."""
    rounds = max(1, round(2.5 * wanted.seconds))
    rows = rows_of(images(500, seed=5))
    expected = _scores(predictor("support.runs.predicting:convolved", 8, top_k=5), rows)
    worst: dict[str, float] = {}

    def compare(name: str, **model: Any) -> None:
        on = predictor(
            "support.runs.predicting:convolved",
            8,
            num_gpus=0 if wanted.cpu else 1,
            top_k=5,
            **model,
        )
        worst[name] = max(float(abs(_scores(on, rows) - expected).max()) for _ in range(rounds))

    compare("eager")
    for name, model in (("from a thread", {}), ("compiled", {"runtime": "compile"})):
        if model and wanted.cpu:
            continue
        thread = threading.Thread(target=compare, args=(name,), kwargs=model)
        thread.start()
        thread.join()
        worst.setdefault(name, float("inf"))  # it raised
    is_equal = all(difference <= 1e-4 for difference in worst.values())
    told = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return PASS if is_equal else FAIL, f"{rounds} rounds, largest difference: {told}"


def _scores(model: Any, rows: pa.Table) -> np.ndarray:
    return np.array([each.as_py() for each in model.predict(rows, {}).column("score")])


def spin(wanted: argparse.Namespace) -> Said:
    """Predict slices, and count the processor seconds of all threads of this process."""
    found = _classifier(wanted, 1 if wanted.cpu else 128, "fp32" if wanted.cpu else "bf16")
    rows, num_rows = _noise(found, 8 if wanted.cpu else 512), 0
    found.predict(rows, {})
    began, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < wanted.seconds:
        found.predict(rows, {})
        num_rows += rows.num_rows
    took_s, share = time.perf_counter() - began, time.process_time() - cpu_s
    share /= took_s
    verdict = FIGURE if wanted.cpu else PASS if share < _SPIN_SHARE else FAIL
    return verdict, f"{share:.2f} of a core at {num_rows / took_s:,.0f} rows/s"


def memory(wanted: argparse.Namespace) -> Said:
    """Let memory run out in a batch, beside another tenant, and while the model is loaded."""
    if wanted.cpu:
        return NOT_HERE, "needs a card"
    said, fine = [], True
    for runtime, held_share in itertools.product(("eager", "compile"), (0.0, 0.9)):
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(int(held_share * free), dtype=torch.uint8, device="cuda")
        num_failed, told = _predict_much(wanted, runtime)
        fine &= not num_failed
        said.append(f"{runtime}, {held_share:.0%} held: {told}")
        del held
        gc.collect()
        torch.cuda.empty_cache()
    size_gib = 1.2 * torch.cuda.mem_get_info()[1] / 2**30
    told = _too_large(size_gib)
    return PASS if fine and "GiB" in told else FAIL, "; ".join([*said, f"too large: {told}"])


def _predict_much(wanted: argparse.Namespace, runtime: str) -> tuple[int, str]:
    """Predict a batch that is too large for most cards; return the rows that failed, and words."""
    try:
        found = _classifier(wanted, 4096, "fp32", runtime=runtime)
        errors = found.predict(_noise(found, 4096), {}).column("error")
    except JobError as error:  # batches of one size cannot be made smaller
        return 0, f"refused: {error}"
    num_failed = len(errors) - errors.null_count
    return num_failed, f"{num_failed} rows failed"


def _too_large(size_gib: float) -> str:
    """Return what a run says of a model of this size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        pq.write_table(pa.table({"x": np.ones(8, np.float32)}), folder / "in" / "0.parquet")
        columns = {"format": "parquet", "features": ["x"]}
        args = {"size_gib": size_gib}
        model = {"factory": "gpu_hour_models:large", "task": "regress", "args": args}
        case = Case(folder, folder / "in", 8, model, columns=columns)
        try:
            run_pipeline("run", case.job("large", folder / "out", resources={"num_gpus": 1}))
        except Unusable as error:
            return str(error)
    return "nothing"


def alone(wanted: argparse.Namespace) -> Said:
    return FIGURE, _bench(wanted, [wanted.model], "share_of_possible")


def _bench(wanted: argparse.Namespace, arguments: list[str], figure: str) -> str:
    """Run gpu.py, and return its steady rows/s and another figure of each way."""
    program = [sys.executable, str(BENCH / "gpu.py"), *arguments, "--rows", str(wanted.rows)]
    program += ["--cpu"] if wanted.cpu else []
    done = subprocess.run(program, capture_output=True, check=False, text=True)
    if done.returncode:
        sys.exit((done.stderr.strip() or "gpu.py failed").splitlines()[-1])
    document = json.loads(done.stdout.splitlines()[-1])
    told = [
        f"{line['precision']} {line['steady_rows_per_s']} rows/s, "
        f"{figure} {line[figure]}, idle {line['idle_pct']}%"
        for line in document["results"]
    ]
    return "; ".join([*told, *(f"{name}: {why}" for name, why in document["skipped"].items())])


def gaps(wanted: argparse.Namespace) -> Said:
    """Run the same photos in slices of two sizes, and with two actors on the card; it is idle while
    no batch is queued.
    """
    said = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build_images(folder / "images", wanted.rows, seed=1, num_bad=0)
        model = {**write_weights(folder, wanted.model), "runtime": "eager", "precision": "fp32"}
        on_gpu = ((256, 1), (1024, 1), (256, 2))
        for slice_rows, actors in ((4, 1), (8, 1)) if wanted.cpu else on_gpu:
            case = Case(folder, folder / "images", wanted.rows, model, slice_rows)
            resources = {"num_gpus": 0 if wanted.cpu else 1, "max_actors": actors}
            resources |= {"actors_per_gpu": actors} if actors > 1 else {}
            found = run_job(case, f"slices-{slice_rows}-{actors}", {"resources": resources})
            said.append(
                f"{actors} actors, slices of {slice_rows}: idle {idle_pct(Path(found['out']))}%, "
                f"{found['steady'] or 0:,.0f} rows/s"
            )
    return FIGURE, "; ".join(said)


def layout(wanted: argparse.Namespace) -> Said:
    """Measure the model alone by the layout of its tensors, with TF32 and with chosen kernels."""
    from torchvision.models import get_model

    device, size = ("cpu", 1) if wanted.cpu else ("cuda", 128)
    said = []
    formats = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
    modes = (False,) if wanted.cpu else (False, True)
    for (name, order), tf32, chosen in itertools.product(formats.items(), modes, modes):
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
        torch.backends.cudnn.benchmark = chosen
        module = get_model(wanted.model, weights=None).eval().to(device, memory_format=order)
        batch = torch.randn(size, 3, 224, 224, device=device).to(memory_format=order)
        rate = rows_per_s(
            lambda each, module=module: module(each["image"]),
            [{"image": batch}],
            is_on_gpu=not wanted.cpu,
            for_s=wanted.seconds / 8,
        )
        ways = ("TF32" if tf32 else "fp32", *(["benchmark"] if chosen else []))
        said.append(f"{name} {' '.join(ways)} {rate:,.0f} rows/s")
    return FIGURE, "; ".join(said)


def _classifier(wanted: argparse.Namespace, batch_size: int, precision: str, **model: Any) -> Any:
    """Return the predictor of the wanted classifier, with random weights."""
    from pipeline.inference.engines.torch_engine import TorchEngine
    from pipeline.job.model import Model
    from pipeline.models.resolving.resolve import resolve_model
    from pipeline.models.spec import PredictorConfig

    with tempfile.TemporaryDirectory() as folder:
        section = Model(**write_weights(Path(folder), wanted.model), precision=precision, **model)
        spec = resolve_model(job_over("image", section))
        config = PredictorConfig(
            spec,
            batch_size=batch_size,
            num_gpus=0 if wanted.cpu else 1,
            num_threads=1,
            pass_through=pa.schema([]),
        )
        return TorchEngine(config)


def _noise(found: Any, num_rows: int) -> pa.Table:
    """Return prepared rows of the size that a predictor takes."""
    from pipeline.core.arrays import images_to_arrow
    from pipeline.preprocessing.model_input import BatchLimits

    [slot] = found._config.spec.input.slots(BatchLimits(1)).values()
    pixels = np.random.default_rng(0).integers(0, 255, (num_rows, *slot.shape[1:]), np.uint8)
    rows = rows_of(images(num_rows)).drop_columns(["n"])
    at = rows.schema.get_field_index("image")
    return rows.set_column(at, "image", images_to_arrow(pixels))


STEPS: dict[str, Callable[[argparse.Namespace], Said]] = {
    each.__name__: each for each in (facts, tests, sticky, races, spin, memory, alone, gaps, layout)
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--model", required=True)
    wanted = parser.parse_args()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here; --cpu does what can be done without one")
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(BENCH), str(ROOT), os.environ.get("PYTHONPATH", "")]
    )
    verdict, said = STEPS[wanted.step](wanted)
    print(json.dumps({"verdict": verdict, "said": said}))


if __name__ == "__main__":
    main()
