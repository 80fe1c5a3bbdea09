"""Measure one candidate of grid.py: a plain process a replica, all of them at the same time.

A replica loads the model as a model actor does, waits for the others, warms up, times one batch,
goes on for as long as a trial of `auto` does, and predicts a sample that is compared with eager
fp32.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from peer_model import CORES, files_of

from pipeline.core.schema import IMAGE
from pipeline.inference.runtimes.int8 import INT8

_GIVE_UP_SHARE = 0.25
# The kernel takes seconds to put processes that were woken together on cores of their own.
_WARM_S = 3.0
_SAMPLE_ROWS, _CALIBRATION_ROWS = 512, 128
_SAMPLE = "sample"
_LOAD_S, _MEASURE_S = 900, 600


@dataclass(frozen=True)
class Candidate:
    """One point of the grid."""

    runtime: str
    precision: str
    batch_size: int
    replicas: int
    threads: int


@dataclass(frozen=True)
class Measured:
    """What a candidate gave."""

    candidate: Candidate
    rows_per_s: float = 0.0
    """Of all replicas together."""
    agreement_pct: float = 0.0
    problem: str = ""
    """Why there is no rate; '' if there is."""

    def figures(self) -> dict[str, Any]:
        return {
            "rows_per_s": self.rows_per_s,
            "agreement_pct": self.agreement_pct,
            "problem": self.problem,
        }

    def show(self) -> str:
        return self.problem or f"{self.rows_per_s:8.1f} {self.agreement_pct:6.1f}"


def write_reference(images: Path, model: dict[str, Any], path: Path) -> None:
    """Keep a sample of the photos, transformed, and what eager fp32 makes of it."""
    process = get_context("spawn").Process(target=_write_reference, args=(images, model, path))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError("eager fp32 cannot predict the sample")


def write_calibrated(reference: Path, model: dict[str, Any], batch_size: int) -> str:
    """Calibrate an int8 model for a batch size on half of the sample, as `tune` does.

    Returns:
        '', or why there is none.
    """
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(
        target=_write_calibrated, args=(theirs, reference, model, batch_size)
    )
    process.start()
    theirs.close()
    try:
        problem: str = _receive(ours, _LOAD_S)
    except (EOFError, OSError):
        problem = "calibrating died"
    process.join()
    return problem


def measure(reference: Path, model: dict[str, Any], candidate: Candidate, best: float) -> Measured:
    """Measure a candidate.

    Args:
        reference: What `write_reference` wrote.
        model: The model section of a job.
        candidate: What to measure.
        best: Rows/s of the best so far; 0 never gives up.
    """
    context = get_context("spawn")
    pipes = [context.Pipe() for _ in range(candidate.replicas)]
    replicas = [
        context.Process(target=_replica, args=(theirs, reference, model, candidate))
        for _, theirs in pipes
    ]
    for replica in replicas:
        replica.start()
    for _, theirs in pipes:
        theirs.close()  # so that a replica that dies is noticed
    try:
        return _conduct([ours for ours, _ in pipes], candidate, best)
    except (EOFError, OSError):
        return Measured(candidate, problem="died")
    finally:
        for ours, _ in pipes:
            ours.close()
        for replica in replicas:
            replica.join(5)
            if replica.is_alive():
                replica.kill()


def _conduct(replicas: list[Connection], candidate: Candidate, best: float) -> Measured:
    loaded = [_receive(replica, _LOAD_S) for replica in replicas]
    problem = next(filter(None, loaded), "")
    if problem:
        return Measured(candidate, problem=problem)
    _ask(replicas, "warm")
    first_rate = candidate.replicas * candidate.batch_size / max(_ask(replicas, "batch"))
    if first_rate < _GIVE_UP_SHARE * best:
        return Measured(candidate, problem=f"abandoned: first batch {first_rate:.1f} rows/s")
    rate = sum(_ask(replicas, "rate"))
    agreement_pct = min(_ask(replicas, "agreement"))
    return Measured(candidate, round(rate, 1), agreement_pct)


def _ask(replicas: list[Connection], what: str) -> list[float]:
    """Let all replicas do something at the same time; return their answers."""
    for replica in replicas:
        replica.send(what)
    return [_receive(replica, _MEASURE_S) for replica in replicas]


def _receive(replica: Connection, timeout_s: float) -> Any:
    if not replica.poll(timeout_s):
        raise EOFError
    return replica.recv()


def _replica(conductor: Connection, reference: Path, model: dict[str, Any], way: Candidate) -> None:
    """The process: answer what the conductor asks, until it hangs up."""
    from pipeline.core.errors import PipelineError

    expected = dict(np.load(reference))
    sample = expected.pop(_SAMPLE)
    batch = np.resize(sample, (way.batch_size, *sample.shape[1:]))
    try:
        predictor = _predictor(model, way, reference)
    except (PipelineError, ValueError, RuntimeError) as error:
        conductor.send(" ".join(str(error).split())[:120])
        return
    answers = {
        "warm": lambda: _warm(predictor, batch),
        "batch": lambda: _timed(predictor, batch),
        "rate": lambda: _rate(predictor, batch),
        "agreement": lambda: _agreement_pct(predictor, sample, expected),
    }
    conductor.send("")  # no problem
    try:
        while True:
            conductor.send(answers[conductor.recv()]())
    except (EOFError, OSError):
        return


def _agreement_pct(predictor: Any, sample: Any, expected: dict[str, Any]) -> float:
    from pipeline.job.gates import Gates
    from pipeline.models.agreement import AgreementLimits, compare

    return compare(expected, predictor.reduce({IMAGE: sample}), AgreementLimits.of(Gates())).pct


def _predictor(model: dict[str, Any], way: Candidate, reference: Path) -> Any:
    from pipeline.inference.engines.torch_engine import TorchEngine

    return TorchEngine(_config(model, way, reference))


def _config(model: dict[str, Any], way: Candidate, reference: Path) -> Any:
    import pyarrow as pa

    from pipeline.job.model import Model
    from pipeline.job.transform import Transform
    from pipeline.models.resolving.resolve import resolve_model
    from pipeline.models.spec import PredictorConfig
    from pipeline.storage.store import Store

    section = Model(**model, runtime=way.runtime, precision=way.precision)
    spec = resolve_model(section, Transform(), input_name="image")
    made = _made(reference, way.batch_size)
    if way.precision == INT8 and made.exists():
        spec = replace(spec, artefact_sha256=made.read_text())
    store = Store(str(reference.parent), {})
    return PredictorConfig(spec, way.batch_size, 0, way.threads, pa.schema([]), models=store)


def _made(reference: Path, batch_size: int) -> Path:
    """Where the digest of the int8 model of a batch size stands."""
    return reference.with_name(f"int8-{batch_size}")


def _write_calibrated(
    answer: Connection, reference: Path, model: dict[str, Any], batch_size: int
) -> None:
    from pipeline.runs.tuning.trials.runtime_trials import calibrate

    sample = dict(np.load(reference))[_SAMPLE]
    config = _config(model, Candidate("onnxruntime", INT8, batch_size, 1, 1), reference)
    sha256, problem = calibrate(config, {IMAGE: sample[:_CALIBRATION_ROWS]})
    if sha256:
        _made(reference, batch_size).write_text(sha256)
    answer.send(problem)


def _write_reference(images: Path, model: dict[str, Any], path: Path) -> None:
    from pipeline.job.model import Model
    from pipeline.job.transform import Transform
    from pipeline.models.resolving.resolve import resolve_model

    sample = _sample(
        images, resolve_model(Model(**model), Transform(), input_name="image").input.transform
    )
    eager = _predictor(model, Candidate("eager", "fp32", 32, 1, CORES), path)
    np.savez(path, **{_SAMPLE: sample}, **eager.reduce({IMAGE: sample}))


def _sample(images: Path, transform: Any) -> Any:
    from pipeline.preprocessing.images.decode import DecodeLimits, decode_image
    from pipeline.preprocessing.images.resizing import resize_and_crop

    every = files_of(str(images))
    files = random.Random(0).sample(every, min(_SAMPLE_ROWS, len(every)))
    size = transform.size_px
    sample = np.zeros((len(files), size, size, 3), np.uint8)
    limits = DecodeLimits(1 << 30, 1 << 30)
    for row, path in enumerate(files):
        image = decode_image(Path(path).read_bytes(), limits)
        sample[row] = resize_and_crop(image, transform).permute(1, 2, 0).numpy()
    return sample


def _warm(predictor: Any, batch: Any) -> float:
    spent_s = 0.0
    while spent_s < _WARM_S:
        spent_s += _timed(predictor, batch)
    return spent_s


def _timed(predictor: Any, batch: Any) -> float:
    started = time.perf_counter()
    predictor.reduce({IMAGE: batch})
    return time.perf_counter() - started


def _rate(predictor: Any, batch: Any) -> float:
    """Rows/s as a trial of `auto` measures them."""
    from pipeline.runs.tuning.trials.measure import Workload

    return Workload(predictor._config, {IMAGE: batch}).measure_rate(predictor, 0.0)
