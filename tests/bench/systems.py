"""Run each system that the measurements compare, in processes of its own."""

from __future__ import annotations

import ast
import json
import os
import random
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from machine import BENCH, ROOT
from safetensors.torch import save_file
from support.inputs.photos import build_images
from support.runs.checkout import PYTHONPATH
from support.runs.cli import command, environment
from torchvision.models import get_model

from pipeline.core.environment import PLAIN_RAY
from pipeline.execution.environment import WORKER_ENVIRONMENT as MALLOC
from pipeline.inference.runtimes.int8 import INT8

OURS = {
    "exact": {"runtime": "eager", "precision": "fp32"},
    "fp32": {"runtime": "auto", "precision": "fp32"},
    "auto": {"runtime": "auto", "precision": "auto"},
    "plain": {"runtime": "auto", "precision": "auto"},
}
"""Our systems, and what their jobs say of the model."""
PLAIN = "plain"
"""With Ray as it comes, without the pipeline's patches."""
LIMIT = "limit"
MINILM = "minilm"
"""The model of texts; all others classify photos."""
MINILM_FOLDER = ROOT / "build" / "minilm"
PEERS_PYTHON = os.environ.get("PEERS_PYTHON", sys.executable)
"""Of Daft and Spark, which hold pyarrow to an older version: `make bench` installs them there."""
# The children import this checkout, whatever else is installed.
CHECKOUT = {
    "PYTHONPATH": os.pathsep.join((PYTHONPATH, str(BENCH))),
    "PIPELINE_ALLOW_IMPORT": "models",
}


class Unusable(Exception):
    """A system cannot run here; the text says why."""


@dataclass(frozen=True)
class Case:
    """One model over one set of rows."""

    folder: Path
    """Where jobs and outputs go."""
    inputs: Path
    num_rows: int
    model: dict[str, Any]
    """The model section of a job."""
    columns: Mapping[str, Any] = field(default_factory=lambda: {"format": "images"})
    """The source section of a job, beside the place of the inputs."""
    transform: Mapping[str, Any] | None = None
    """The transform section; None: the model says it."""

    @property
    def out(self) -> Path:
        """Where all jobs write, each its own partition; what `tune` finds is kept there, too."""
        return self.folder / "out"

    def calibrated(self) -> str:
        """Return the path of the int8 model that `tune` made last."""
        made = (self.out / "_control" / "models").glob("*.onnx")
        return str(max(made, key=lambda path: path.stat().st_mtime))

    def job(self, name: str, **sections: Any) -> str:
        """Write a job file; a section that is given stands in place of the usual one."""
        document = {
            "source": {"uri": str(self.inputs), **self.columns},
            "model": self.model,
            "sink": {"uri": str(self.out), "partition": f"run={time.time_ns()}"},
            "run": {"reuse": "off"},
            "gates": {"constant": {"mode": "off"}},  # random weights see one class everywhere
            **({"transform": dict(self.transform)} if self.transform else {}),
            **sections,
        }
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(document))
        return str(path)


def make_case(folder: Path, name: str, num_rows: int) -> Case:
    """Write the rows of a model, and its weights.

    Raises:
        Unusable: The model of texts is not there.
    """
    case_folder = folder / name
    case_folder.mkdir()
    if name == MINILM:
        if not MINILM_FOLDER.exists():
            raise Unusable("`make build/minilm/modules.json` fetches the model")
        (case_folder / "texts").mkdir()
        rows = pa.table({"id": range(num_rows), "text": passages(num_rows)})
        pq.write_table(rows, case_folder / "texts" / "passages.parquet", row_group_size=2_000)
        columns = {"format": "parquet", "text_column": "text", "id_column": "id"}
        return Case(
            case_folder,
            case_folder / "texts",
            num_rows,
            {"path": str(MINILM_FOLDER)},
            columns=columns,
        )
    model = write_weights(case_folder, name)
    return Case(case_folder, photos_below(folder, num_rows), num_rows, model)


def photos_below(folder: Path, num_rows: int) -> Path:
    """Write photos once; return their folder."""
    if not (folder / "images").exists():
        build_images(folder / "images", num_rows, seed=1, num_bad=0)
    return folder / "images"


def write_weights(folder: Path, name: str) -> dict[str, Any]:
    """Return the model section of a job; torchvision models get seeded weights."""
    if name == "efficientnet-lite0":
        return {"name": name}
    path = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    save_file(get_model(name, weights=None).state_dict(), path)
    return {"name": name, "weights": str(path)}


def tune(case: Case, system: str) -> dict[str, Any]:
    """Run `pipeline tune` for one of our systems.

    Raises:
        Unusable: Nothing agrees with eager fp32.
    """
    return run_pipeline("tune", case.job("tune", model={**case.model, **OURS[system]}))


def run(system: str, case: Case, chosen: str) -> dict[str, Any]:
    """Run one system once.

    Args:
        system: Its name.
        case: Over what.
        chosen: Runtime, precision and batch size that the limit takes.

    Returns:
        `whole` and `steady`, rows/s of the whole process and without starting up; for ours also
        `startup`, seconds by cause, and for texts `padding_pct`, the share of the model's tokens
        that was padding.

    Raises:
        Unusable: It failed.
    """
    if system not in OURS:
        return run_peer(system, case, chosen)
    report = run_job(case, system, model={**case.model, **OURS[system]})
    return {
        "whole": report["whole_rows_per_s"],
        "steady": case.num_rows / working_s(report),
        "startup": {part["part"]: part["wall_s"] or 0.0 for part in report["startup"]},
        **({"padding_pct": report["texts"]["padding_pct"]} if report["texts"] else {}),
    }


def run_job(
    case: Case, name: str, more: Mapping[str, str] | None = None, /, **sections: Any
) -> dict[str, Any]:
    """Run `pipeline run` once with sections of the job; return its report and `whole_rows_per_s`.

    Args:
        more: Variables for its environment.

    Raises:
        Unusable: It failed.
    """
    job = case.job(name, **sections)
    started = time.perf_counter()
    env = {**(more or {}), **({PLAIN_RAY: "1"} if name == PLAIN else {})}
    report = run_pipeline("run", job, "--quiet", **env)
    whole_s = time.perf_counter() - started
    _check_rows(name, report["rows"]["computed"], case)
    return {**report, "whole_rows_per_s": case.num_rows / whole_s}


def working_s(report: Mapping[str, Any]) -> float:
    """Return the seconds of a run's stream in which its actors were there, with their models."""
    waited_s = sum(
        part["wall_s"] or 0.0 for part in report["startup"] if part["part"] != "ray_start"
    )
    return max(report["streaming_wall_s"] - waited_s, 1e-3)


def run_peer(system: str, case: Case, chosen: str = "") -> dict[str, Any]:
    """Run a peer or the limit once.

    Raises:
        Unusable: It failed.
    """
    more = chosen.split() if system == LIMIT else [str(case.folder / f"out-{time.time_ns()}")]
    if system == LIMIT:
        more.append(case.calibrated() if INT8 in more else "")
    name, weights = case.model.get("name") or case.model["path"], case.model.get("weights", "")
    python = PEERS_PYTHON if system in ("daft", "daft-text", "spark") else sys.executable
    program = [python, str(BENCH / "peers.py"), system, str(case.inputs), name, weights]
    started = time.perf_counter()
    done = subprocess.run(
        [*program, *more],
        env={**os.environ, **CHECKOUT, **(MALLOC if system == LIMIT else {})},
        capture_output=True,
        check=False,
        text=True,
    )
    whole_s = time.perf_counter() - started
    if done.returncode:
        raise Unusable(f"{system}: {_last_line(done.stderr)}")
    document = json.loads(done.stdout.splitlines()[-1])
    _check_rows(system, document["rows"], case)
    return {"whole": document["rows"] / whole_s, "steady": document["rows"] / document["work_s"]}


def run_pipeline(*arguments: str, **env: str) -> dict[str, Any]:
    """Run a command of ours, and return its document.

    Raises:
        Unusable: It failed.
    """
    done = subprocess.run(
        command(*arguments, "--json"),
        env=environment({**CHECKOUT, **env}),
        capture_output=True,
        check=False,
        text=True,
    )
    if done.returncode:
        raise Unusable(f"pipeline {arguments[0]}: {_last_line(done.stderr)}")
    return json.loads(done.stdout.splitlines()[-1])


def _check_rows(system: str, rows: int, case: Case) -> None:
    if rows != case.num_rows:
        raise Unusable(f"{system}: {rows} of {case.num_rows} rows were predicted")


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no message")


MIN_WORDS, MAX_WORDS = 3, 500
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def passages(num_rows: int, seed: int = 1) -> list[str]:
    """Return so many passages of 3 to 500 words.

    There are some eight thousand docstrings; what is missing are two of them, one after the other.
    Another Python has other docstrings.
    """
    library, chosen = Path(sysconfig.get_paths()["stdlib"]), random.Random(seed)
    files = (path for path in sorted(library.rglob("*.py")) if _is_documented(path))
    single = list(dict.fromkeys(text for path in files for text in _texts(path)))
    chosen.shuffle(single)
    texts = single[:num_rows]
    while len(texts) < num_rows:
        joined = " ".join(chosen.sample(single, 2))
        if len(joined.split()) <= MAX_WORDS:
            texts.append(joined)
    chosen.shuffle(texts)
    return texts


def _is_documented(path: Path) -> bool:
    return not {"site-packages", "dist-packages", "test", "tests"} & set(path.parts)


def _texts(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return  # files of the library that test such errors
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            text = " ".join((ast.get_docstring(node) or "").split())
            if MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                yield text
