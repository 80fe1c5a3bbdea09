"""Run each system that throughput.py and text.py compare, in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from peer_model import steady_rate
from safetensors.torch import save_file
from torchvision.models import get_model

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "support/toys"))
from support.runs.cli import command, environment

from pipeline.commit.staging import read_footer
from pipeline.execution.environment import WORKER_ENVIRONMENT as MALLOC
from pipeline.inference.runtimes.int8 import INT8
from pipeline.storage.store import Store

BENCH = Path(__file__).parent
ROOT = BENCH.parent.parent
OURS = {
    "exact": {"runtime": "eager", "precision": "fp32"},
    "fp32": {"runtime": "auto", "precision": "fp32"},
    "auto": {"runtime": "auto", "precision": "auto"},
}
"""Our systems, and what their jobs say of the model."""
_WORK = ("decode", "transform", "tokenize", "transfer", "predict")
"""Stages that an actor which prepares its rows does one after the other."""
# The children import this checkout, whatever else is installed.
PEERS_PYTHON = os.environ.get("PEERS_PYTHON", sys.executable)
"""Daft and Spark live in an environment of their own: they hold pyarrow to an older version."""
CHECKOUT = {
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BENCH.parent, BENCH))),
    "PIPELINE_ALLOW_IMPORT": "models",
}


class Unusable(Exception):
    """A system cannot run here; the text says why."""


@dataclass(frozen=True)
class Case:
    """One model over one set of rows."""

    folder: Path
    """Where jobs, outputs and profiles go."""
    inputs: Path
    num_rows: int
    model: dict[str, Any]
    """The model section of a job."""
    slice_rows: int | None = None
    """What the job says; None leaves it to the pipeline."""
    columns: Mapping[str, Any] = field(default_factory=lambda: {"format": "images"})
    """The source section of a job, beside the place of the inputs."""

    def calibrated(self) -> str:
        """Return the path of the int8 model that `tune` made last."""
        made = (self.folder / "models").glob("*.onnx")
        return str(max(made, key=lambda path: path.stat().st_mtime))

    def job(self, name: str, out: Path, **sections: Any) -> str:
        """Write a job file; a section that is given stands in place of the usual one."""
        document = {
            "source": {"uri": str(self.inputs), **self.columns},
            "model": self.model,
            "sink": {"uri": str(out)},
            "run": {} if self.slice_rows is None else {"slice_rows": self.slice_rows},
            "gates": {"constant": {"mode": "off"}},  # random weights see one class everywhere
            **sections,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)


def write_weights(folder: Path, name: str) -> dict[str, Any]:
    """Return the model section of a job; torchvision models get seeded weights."""
    if name == "efficientnet-lite0":
        return {"name": name}
    path = folder / f"{name}.safetensors"
    if not path.exists():
        torch.manual_seed(0)
        save_file(get_model(name, weights=None).state_dict(), path)
    return {"name": name, "weights": str(path)}


def tune(case: Case, system: str) -> dict[str, Any]:
    """Run `pipeline tune` for one of our systems; keep its profile for the runs.

    Raises:
        Unusable: Nothing agrees with eager fp32.
    """
    out = case.folder / f"tuned-{time.time_ns()}"
    job = case.job("tune", out, **sections_of(case, system))
    found = run_pipeline("tune", job)
    profiles = case.folder / "profiles"
    profiles.mkdir(exist_ok=True)
    for path in (out / "_control" / "profiles").iterdir():
        path.rename(profiles / path.name)
    if (out / "_control" / "models").exists():  # int8 models, which a profile names
        (case.folder / "models").mkdir(exist_ok=True)
        for path in (out / "_control" / "models").iterdir():
            path.replace(case.folder / "models" / path.name)
    return found


def run(system: str, case: Case, chosen: str) -> dict[str, Any]:
    """Run one system once.

    Args:
        system: Its name.
        case: Over what.
        chosen: Runtime, precision and batch size that the limit takes.

    Returns:
        `whole` and `steady` rows/s (steady is None where nobody can tell); for ours also
        `startup`, seconds by cause.

    Raises:
        Unusable: It failed.
    """
    if system in OURS:
        return run_job(case, system, sections_of(case, system))
    more = chosen.split()
    if system == "limit":
        more.append(case.calibrated() if INT8 in more else "")
    return run_peer(system, case, *more)


def sections_of(case: Case, system: str) -> dict[str, Any]:
    return {"model": {**case.model, **OURS[system]}}


def run_job(
    case: Case, name: str, sections: dict[str, Any], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run `pipeline run` once.

    Args:
        case: Over what.
        name: Of the job.
        sections: Of the job file, beside the usual ones.
        env: Further variables of the environment.

    Returns:
        What `run` returns, and `first_slice_s`: to the first commit; `slices`: their number;
        `batch_size` and `batch_tokens`; `choice`: the report's sentence; `out`: the output; for
        texts `padding_pct`: which share of the model's tokens was padding.
    """
    out = case.folder / f"out-{name}-{time.time_ns()}"
    (out / "_control").mkdir(parents=True)
    if (case.folder / "profiles").exists():  # what `tune` found lies below the sink
        (out / "_control" / "profiles").symlink_to(case.folder / "profiles")
    if (case.folder / "models").exists():
        (out / "_control" / "models").symlink_to(case.folder / "models")
    job = case.job(name, out, **sections)
    began, started = time.time(), time.perf_counter()
    report = run_pipeline("run", job, "--quiet", env=env)
    whole_s = time.perf_counter() - started
    rows = report["rows"]["computed"]
    _check_rows(name, rows, case)
    staged = staged_slices(out)
    return {
        "whole": rows / whole_s,
        "steady": steady_of(staged),
        "slices": len(staged),
        "batch_size": report["model"]["batch_size"],
        "batch_tokens": report["model"].get("batch_tokens"),
        "choice": (report["model"].get("choice") or {}).get("text"),
        "out": str(out),
        **_padding(staged.values()),
        "startup": {entry["part"]: entry["wall_s"] or 0.0 for entry in report["startup"]},
        "first_slice_s": min(path.stat().st_mtime for path in staged) - began,
    }


def staged_slices(out: Path) -> dict[Path, Any]:
    """Return the footers of all slices that a run staged, by the paths of their files."""
    paths = (out / "_control").rglob("staging/*/*.parquet")
    return {path: read_footer(Store(str(path.parent)), path.name) for path in paths}


def steady_of(staged: Mapping[Path, Any]) -> float | None:
    """Return rows/s of the second half of the rows; see `steady_rate`."""
    ends = [_row_ends(path, footer) for path, footer in staged.items()]
    return steady_rate(np.concatenate([np.zeros(0), *ends]))


def _row_ends(path: Path, staged: Any) -> np.ndarray:
    """Return when the rows of a staged slice were predicted, (N,): one after the other while the
    actor was busy with it, and the last one when its file was written."""
    busy_s = sum(staged.counters[name]["busy_s"] for name in _WORK if name in staged.counters)
    last, rows = path.stat().st_mtime, staged.num_rows
    return last - busy_s * np.arange(rows) / max(1, rows)


def _padding(footers: Iterable[Any]) -> dict[str, float]:
    counted = [staged.figures.tokens for staged in footers if staged.figures.tokens]
    padded = sum(tokens.num_padded for tokens in counted)
    if not padded:
        return {}
    return {"padding_pct": round(100 * (1 - sum(t.num_tokens for t in counted) / padded), 2)}


def run_peer(system: str, case: Case, *more: str) -> dict[str, Any]:
    name = case.model.get("name") or case.model.get("path") or case.model["factory"]
    weights = case.model.get("weights", "")
    program = [python_of(system), str(BENCH / "peers.py"), system, str(case.inputs), name, weights]
    started = time.perf_counter()
    done = subprocess.run(
        [*program, *more],
        env={**os.environ, **CHECKOUT, **(MALLOC if system == "limit" else {})},
        capture_output=True,
        check=False,
        text=True,
    )
    whole_s = time.perf_counter() - started
    if done.returncode:
        raise Unusable(f"{system}: {_last_line(done.stderr)}")
    found = json.loads(done.stdout.splitlines()[-1])
    _check_rows(system, found["rows"], case)
    return {**found, "whole": found["rows"] / whole_s}


def python_of(system: str) -> str:
    """Return the interpreter that runs a peer."""
    return PEERS_PYTHON if system in ("daft", "daft-text", "spark") else sys.executable


def missing(system: str) -> str:
    """Say what a system needs that is not here; '' where nothing is missing."""
    if system in OURS:
        return ""
    program = [python_of(system), str(BENCH / "peers.py"), system, "--missing"]
    done = subprocess.run(program, capture_output=True, check=False, text=True)
    return (done.stdout.strip() or _last_line(done.stderr)) if done.returncode else ""


def run_pipeline(*arguments: str, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a command of ours, and return its document.

    Raises:
        Unusable: It failed.
    """
    done = subprocess.run(
        command(*arguments, "--json"),
        env=environment({**CHECKOUT, **(env or {})}),
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise Unusable(f"pipeline {arguments[0]}: {_last_line(done.stderr)}")
    document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return document


def _check_rows(system: str, rows: int, case: Case) -> None:
    if rows != case.num_rows:
        raise Unusable(f"{system}: {rows} of {case.num_rows} rows were predicted")


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")
