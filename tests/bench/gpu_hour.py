"""The first hour on a GPU as one command: `python tests/bench/gpu_hour.py [STEP...]`.

Each step is a process of its own with a time limit, and a failed one stops no other. Prints a line
per step, `pass`, `fail`, `figure` (nothing is promised) or `not here`, then JSON; exits with 1 if a
step failed. `--cpu` does what can be done without a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STEPS: dict[str, tuple[float, str]] = {
    "facts": (3, "driver, card and torch fit, and doctor says so"),
    "tests": (8, "the tests that need a card"),
    "sticky": (6, "a row that loses the context costs itself"),
    "races": (8, "batches that overlap are those of the CPU, from another thread and compiled too"),
    "spin": (3, "waiting for the card costs no core"),
    "memory": (8, "lack of memory costs time, and a model that is too large is named"),
    "alone": (20, "share of the model alone that the pipeline reaches"),
    "gaps": (12, "idle share of the card by the rows of a slice, and with two actors"),
    "layout": (8, "fp32 beside TF32, channels last and cudnn.benchmark"),
}
"""Name -> minutes that it may take, and what it shows; `gpu_steps.py` has a function of each."""
PASS, FAIL = "pass", "fail"


def main() -> None:
    wanted = parse()
    options = [*(["--cpu"] if wanted.cpu else []), "--rows", str(wanted.rows)]
    options += ["--seconds", str(wanted.seconds), "--model", wanted.model]
    found = {}
    for step in wanted.steps:
        minutes, shows = STEPS[step]
        began = time.monotonic()
        found[step] = run(step, options, 60 * (wanted.minutes or minutes))
        found[step]["took_s"] = round(time.monotonic() - began, 1)
        print(f"{found[step]['verdict']:<9}{step}: {shows}: {found[step]['said']}", flush=True)
    print(json.dumps(found))
    sys.exit(int(any(each["verdict"] == FAIL for each in found.values())))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("steps", nargs="*", default=list(STEPS), metavar="STEP")
    parser.add_argument("--cpu", action="store_true", help="do what can be done without a GPU")
    parser.add_argument("--rows", type=int, default=8_000, help="of a run that is measured")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a measurement")
    parser.add_argument("--model", default="vit_b_16", help="a classifier of torchvision")
    parser.add_argument("--minutes", type=float, help="the limit of each step; left out: its own")
    wanted = parser.parse_args()
    if unknown := [step for step in wanted.steps if step not in STEPS]:
        parser.error(f"no step {unknown[0]!r}; there are {', '.join(STEPS)}")
    return wanted


def run(step: str, options: list[str], limit_s: float) -> dict[str, Any]:
    """Run a step in a process group of its own, and return `verdict` and `said`."""
    program = [sys.executable, str(Path(__file__).with_name("gpu_steps.py")), step, *options]
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
        lines = [_lines(each) for each in (out, err)]
    if code:
        last = (lines[1] or lines[0] or ["no message"])[-1]
        return {"verdict": FAIL, "said": f"ended with {code}: {last}"}
    found: dict[str, Any] = json.loads(lines[0][-1])
    return found


def _lines(file: Any) -> list[str]:
    file.seek(0)
    return [line for line in file.read().splitlines() if line.strip()]


if __name__ == "__main__":
    main()
