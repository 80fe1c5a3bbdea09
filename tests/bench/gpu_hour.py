"""The first hour on a GPU as one command: `python tests/bench/gpu_hour.py [STEP...]`.

Each step is a process of its own with a time limit, and a failed one stops no other. Prints a line
per step, `pass`, `fail`, `figure` (nothing is promised) or `not here`, then JSON; exits with 1 if a
step failed. `--cpu` does what can be done without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import itertools
import json
import os
import shutil
import signal
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
from machine import BENCH, ROOT
from support.runs.cli import command, environment
from support.runs.jobs import job_over
from support.runs.predicting import images, predictor, rows_of
from systems import Case, Unusable, run_pipeline, write_weights
from torch import nn

from pipeline.core.arrays import images_to_arrow
from pipeline.core.errors import JobError
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.job.model import Model
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig

PASS, FAIL, FIGURE, NOT_HERE = "pass", "fail", "figure", "not here"
POISON = 99.0
"""The feature of the row that loses its context."""
_SPIN_SHARE = 0.3
"""Of a core, for launching and gathering; a wait that spins takes all of one."""
Outcome = tuple[str, str]
"""Verdict, and what was found."""


class Poisoned(nn.Module):
    """One number per row, (B, F) -> (B, 1); a row that begins with POISON loses the device.

    On a GPU the kernel's assertion leaves no context behind; on the CPU the process ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ids = torch.where(x[:, 0] == POISON, 99, 1)
        if not x.is_cuda and bool((ids == 99).any()):
            os._exit(3)
        return x.sum(dim=1, keepdim=True) + 0 * self.table(ids).sum(dim=1, keepdim=True)


class Large(nn.Module):
    """Parameters of so many GiB."""

    def __init__(self, size_gib: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(int(size_gib * 2**28)), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True) + 0 * self.weight[:1]


def facts(wanted: argparse.Namespace) -> Outcome:
    code = subprocess.run(command("doctor"), env=environment(), capture_output=True, check=False)
    notes = [f"torch {torch.__version__}, CUDA {torch.version.cuda}"]
    notes += [f"doctor exits with {code.returncode}"]
    notes += [f"{name} {shutil.which(name) or 'missing'}" for name in ("gcc", "nvidia-smi")]
    if wanted.cpu:
        return FIGURE, "; ".join(notes)
    major, minor = torch.cuda.get_device_capability()
    arch, known = f"sm_{major}{minor}", torch.cuda.get_arch_list()
    notes += [torch.cuda.get_device_name(), f"{arch} among {', '.join(known)}"]
    is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    notes += [f"bf16 {'in hardware' if is_fast else 'emulated'}"]
    # A kernel of the same generation serves its later members, too.
    fits = any(arch_name.startswith(f"sm_{major}") for arch_name in known)
    return PASS if fits and not code.returncode else FAIL, "; ".join(notes)


def tests(wanted: argparse.Namespace) -> Outcome:
    folders = ["tests/inference", "tests/preprocessing", "tests/models"]
    program = [sys.executable, "-m", "pytest", "-n0", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*program, *folders], cwd=ROOT, capture_output=True, check=False, text=True
    )
    last = done.stdout.strip().splitlines()[-1].strip("= ")
    is_done = done.returncode == 0 and (wanted.cpu or "passed" in last)
    return PASS if is_done else FAIL, last


def run_features(
    folder: Path, columns: dict[str, np.ndarray], model: dict[str, Any], **resources: float
) -> dict[str, Any]:
    """Run a job over a table of numbers in slices of 64 rows, with a model of this file."""
    (folder / "in").mkdir()
    pq.write_table(pa.table(columns), folder / "in" / "0.parquet")
    source = {"format": "parquet", "features": list(columns)}
    model |= {"factory": f"gpu_hour:{model['factory']}", "task": "regress"}
    case = Case(folder, folder / "in", len(columns["x"]), model, 64, source)
    env = {"PIPELINE_ALLOW_IMPORT": "gpu_hour"}
    job = case.job("features", resources={**resources, "max_actors": 1})
    return run_pipeline("run", job, "--quiet", env=env)


def sticky(wanted: argparse.Namespace) -> Outcome:
    """Run three slices; one row of the middle one loses the context."""
    first = np.ones(3 * 64, np.float32)
    first[len(first) // 2] = POISON
    columns = {"x": first, "y": np.ones(len(first), np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        gpus = 0 if wanted.cpu else 1
        report = run_features(Path(folder), columns, {"factory": "Poisoned"}, num_gpus=gpus)
    lost = {reason: count for reason, count in report["reasons"].items() if count}
    return PASS if sum(lost.values()) == 1 else FAIL, f"{len(first)} rows, quarantined: {lost}"


def races(wanted: argparse.Namespace) -> Outcome:
    """Predict small batches again and again; the CPU's answer is right."""
    rounds = max(1, round(2.5 * wanted.seconds))
    rows = rows_of(images(500, seed=5))
    factory = "support.runs.predicting:convolved"
    expected = _scores(predictor(factory, 8, top_k=5), rows)
    worst: dict[str, float] = {}

    def compare(name: str, **model: Any) -> None:
        on = predictor(factory, 8, num_gpus=0 if wanted.cpu else 1, top_k=5, **model)
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
    differences = ", ".join(f"{name} {value:.1e}" for name, value in worst.items())
    return PASS if is_equal else FAIL, f"{rounds} rounds, largest difference: {differences}"


def _scores(model: Any, rows: pa.Table) -> np.ndarray:
    return np.array([score.as_py() for score in model.predict(rows, {}).column("score")])


def spin(wanted: argparse.Namespace) -> Outcome:
    """Predict slices, and count the processor seconds of all threads of this process."""
    engine = _classifier(wanted, 1 if wanted.cpu else 128, "fp32" if wanted.cpu else "bf16")
    rows, num_rows = _noise(engine, 8 if wanted.cpu else 512), 0
    engine.predict(rows, {})
    began, cpu_s = time.perf_counter(), time.process_time()
    while time.perf_counter() - began < wanted.seconds:
        engine.predict(rows, {})
        num_rows += rows.num_rows
    took_s, share = time.perf_counter() - began, time.process_time() - cpu_s
    share /= took_s
    verdict = FIGURE if wanted.cpu else PASS if share < _SPIN_SHARE else FAIL
    return verdict, f"{share:.2f} of a core at {num_rows / took_s:,.0f} rows/s"


def memory(wanted: argparse.Namespace) -> Outcome:
    """Let memory run out in a batch, beside another tenant, and while the model is loaded."""
    if wanted.cpu:
        return NOT_HERE, "needs a card"
    results, fine = [], True
    for runtime, held_share in itertools.product(("eager", "compile"), (0.0, 0.9)):
        free, _ = torch.cuda.mem_get_info()
        held = torch.empty(int(held_share * free), dtype=torch.uint8, device="cuda")
        num_failed, result = _predict_much(wanted, runtime)
        fine &= not num_failed
        results.append(f"{runtime}, {held_share:.0%} held: {result}")
        del held
        gc.collect()
        torch.cuda.empty_cache()
    size_gib, result = 1.2 * torch.cuda.mem_get_info()[1] / 2**30, "nothing"
    with tempfile.TemporaryDirectory() as folder:
        model = {"factory": "Large", "args": {"size_gib": size_gib}}
        try:
            run_features(Path(folder), {"x": np.ones(8, np.float32)}, model, num_gpus=1)
        except Unusable as error:
            result = str(error)
    return PASS if fine and "GiB" in result else FAIL, "; ".join([*results, f"too large: {result}"])


def _predict_much(wanted: argparse.Namespace, runtime: str) -> tuple[int, str]:
    """Predict a batch that is too large for most cards; return the rows that failed, and words."""
    try:
        engine = _classifier(wanted, 4096, "fp32", runtime=runtime)
        errors = engine.predict(_noise(engine, 4096), {}).column("error")
    except JobError as error:  # batches of one size cannot be made smaller
        return 0, f"refused: {error}"
    num_failed = len(errors) - errors.null_count
    return num_failed, f"{num_failed} rows failed"


def alone(wanted: argparse.Namespace) -> Outcome:
    """Run gpu.py, and return what it says of each precision."""
    program = [sys.executable, str(BENCH / "gpu.py"), wanted.model, "--rows", str(wanted.rows)]
    program += ["--cpu"] if wanted.cpu else []
    done = subprocess.run(program, capture_output=True, check=False, text=True)
    if done.returncode:
        sys.exit((done.stderr.strip() or "gpu.py failed").splitlines()[-1])
    document = json.loads(done.stdout.splitlines()[-1])
    lines = [
        f"{line['precision']} {line['steady_rows_per_s']} rows/s, {line['share_of_model_alone']} "
        f"of the model alone, idle {line['idle_pct']}%"
        for line in document["results"]
    ]
    lines += [f"{name}: {why}" for name, why in document["skipped"].items()]
    return FIGURE, "; ".join(lines)


def _classifier(wanted: argparse.Namespace, batch_size: int, precision: str, **model: Any) -> Any:
    """Return the engine of the wanted classifier, with random weights."""
    with tempfile.TemporaryDirectory() as folder:
        section = Model(**write_weights(Path(folder), wanted.model), precision=precision, **model)
        config = PredictorConfig(
            resolve_model(job_over("image", section)),
            batch_size=batch_size,
            num_gpus=0 if wanted.cpu else 1,
            num_threads=1,
            pass_through=pa.schema([]),
        )
        return TorchEngine(config)


def _noise(engine: Any, num_rows: int) -> pa.Table:
    """Return prepared rows of the size that an engine takes."""
    shape = engine._config.spec.input.transform.shape
    pixels = np.random.default_rng(0).integers(0, 255, (num_rows, *shape), np.uint8)
    rows = rows_of(images(num_rows)).drop_columns(["n"])
    at = rows.schema.get_field_index("image")
    return rows.set_column(at, "image", images_to_arrow(pixels))


STEPS: dict[str, tuple[float, str, Callable[[argparse.Namespace], Outcome]]] = {
    "facts": (3, "driver, card and torch fit, and doctor says so", facts),
    "tests": (8, "the tests that need a card", tests),
    "sticky": (6, "a row that loses the context costs itself", sticky),
    "races": (8, "overlapping batches are those of the CPU, from a thread and compiled too", races),
    "spin": (3, "waiting for the card costs no core", spin),
    "memory": (8, "lack of memory costs time, and a model that is too large is named", memory),
    "alone": (20, "share of the model alone that the pipeline reaches", alone),
}
"""Name -> minutes that it may take, what it shows, and what does it."""


def main() -> None:
    wanted = parse()
    if not (wanted.cpu or torch.cuda.is_available()):
        sys.exit("no CUDA device here; --cpu does what can be done without one")
    if wanted.here:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(BENCH), str(ROOT), os.environ.get("PYTHONPATH", "")]
        )
        verdict, summary = STEPS[wanted.here][2](wanted)
        print(json.dumps({"verdict": verdict, "said": summary}))
        return
    options = [*(["--cpu"] if wanted.cpu else []), "--rows", str(wanted.rows)]
    options += ["--seconds", str(wanted.seconds), "--model", wanted.model]
    outcomes = {}
    for step in wanted.steps:
        minutes, shows, _ = STEPS[step]
        began = time.monotonic()
        outcomes[step] = run(["--here", step, *options], 60 * (wanted.minutes or minutes))
        outcomes[step]["took_s"] = round(time.monotonic() - began, 1)
        print(
            f"{outcomes[step]['verdict']:<9}{step}: {shows}: {outcomes[step]['said']}", flush=True
        )
    print(json.dumps(outcomes))
    sys.exit(int(any(outcome["verdict"] == FAIL for outcome in outcomes.values())))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", nargs="*", default=list(STEPS), metavar="STEP")
    parser.add_argument("--cpu", action="store_true", help="do what can be done without a GPU")
    parser.add_argument("--rows", type=int, default=8_000, help="of a run that is measured")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--model", default="vit_b_16", help="a classifier of torchvision")
    parser.add_argument("--minutes", type=float, help="the limit of each step; left out: its own")
    parser.add_argument("--here", choices=STEPS, help="do one step in this process")
    wanted = parser.parse_args()
    if unknown := [step for step in wanted.steps if step not in STEPS]:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    return wanted


def run(options: list[str], limit_s: float) -> dict[str, Any]:
    """Run a step in a process group of its own, and return `verdict` and `said`."""
    program = [sys.executable, __file__, *options]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(program, stdout=out, stderr=err, start_new_session=True)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return {"verdict": FAIL, "said": f"no end after {limit_s:.0f} s"}
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever it started ends with it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        lines = [_lines(file) for file in (out, err)]
    if code:
        last = (lines[1] or lines[0] or ["no message"])[-1]
        return {"verdict": FAIL, "said": f"ended with {code}: {last}"}
    return json.loads(lines[0][-1])


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


if __name__ == "__main__":
    main()
