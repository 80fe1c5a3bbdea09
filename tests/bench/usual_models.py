"""Hold the models that people have to their libraries, by name.

    python tests/bench/usual_models.py [--only bge whisper] [--out build/usual.json] [--page p.md]

Each name gets a directory with random weights, of a few layers: the class, and the names of
tensors, types, files of settings and quirks that its directory is known for. They are written from
memory, as no hub is reached: what else a real directory has is not seen. Like names share a maker.
It is resolved as a job resolves it, and held to its library by the check of every run, or, of task
raw, by the comparison of `reach.py`. `equal`; `runs`: the task has no such check; `refused`: by a
message of the package; `not built`: the library does not make it so small; `differs`. Exit 1 if one
differs. `--page` writes a page of all.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import machine  # noqa: F401  # says where what tests share lies
import pyarrow as pa
import torch
import transformers
from reach import DIFFERS, EQUAL, NOT_BUILT, REFUSED, held_by_class
from support.runs.jobs import SOURCES, job_of
from usual_media import DETECTORS, IMAGES, LOOKERS, SOUND
from usual_texts import CLASSIFIERS, ENCODERS, WRITERS, Usual

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.core.schema import TEXT, TEXT_PAIR
from pipeline.inference.engines import open_engine
from pipeline.inference.library_check import hold_to_library
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig

RUNS = "runs"
MOST_S = 300
GROUPS: Mapping[str, Mapping[str, Usual]] = {
    "vectors and encoders": ENCODERS,
    "rerankers and classifiers of texts": CLASSIFIERS,
    "writers of texts": WRITERS,
    "images": IMAGES,
    "detectors": DETECTORS,
    "writers to images": LOOKERS,
    "sound": SOUND,
}


class Verdict(NamedTuple):
    """What became of one model."""

    group: str
    name: str
    verdict: str
    task: str
    why: str


def held(usual: Usual, folder: Path) -> tuple[str, str, str]:
    """Return the verdict, the task and the comparison or the message."""
    try:
        for step in usual.steps:
            step(folder)
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        return NOT_BUILT, "", _line(error)
    source, columns = dict(SOURCES[usual.input]), {}
    if usual.model.get("task") == "score":
        source["text_pair_column"] = TEXT_PAIR
        columns = dict.fromkeys((TEXT, TEXT_PAIR), pa.large_string())
    try:
        spec = resolve_model(job_of({"path": str(folder / usual.file), **usual.model}, source))
        spec = spec.fitted(pa.schema(columns))
        task = spec.task.kind
        if usual.raw:
            verdict = held_by_class(folder, usual.raw)
            return verdict.verdict, task, verdict.why or "equal to the class's own outputs"
        if words := hold_to_library(spec):
            return EQUAL, task, words
        open_engine(PredictorConfig(spec, 4, 0.0, 1, pa.schema([])))
    except PipelineError as error:
        is_other = "predicts something else" in str(error)
        return DIFFERS if is_other else REFUSED, "", _line(error)
    return RUNS, task, "the library check takes no such task"


def _line(error: Exception) -> str:
    text = str(error) if isinstance(error, PipelineError) else f"{type(error).__name__}: {error}"
    return clean_message(text, 300)


def _child(usual: Usual, results: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            made = held(usual, Path(folder) / "model")
        except Exception as error:  # noqa: BLE001  # what a run is not meant to raise
            made = (DIFFERS, "", _line(error))
    results.send(tuple(text.replace(folder, "") for text in made))  # type: ignore[attr-defined]


def apart(group: str, name: str, usual: Usual) -> Verdict:
    """Compare a model in a process of its own, which may crash or never end."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(usual, theirs))
    child.start()
    theirs.close()
    try:
        if not ours.poll(MOST_S):
            return Verdict(group, name, NOT_BUILT, "", f"took more than {MOST_S} s")
        verdict, task, why = ours.recv()
    except EOFError:
        child.join()
        return Verdict(group, name, DIFFERS, "", f"its process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()
    return Verdict(group, name, verdict, task, why)


def page(verdicts: Sequence[Verdict]) -> str:
    """Return the verdicts as a page of Markdown."""
    names = ("torch", "transformers", "sentence-transformers", "timm")
    packages = [f"{name} {version(name).partition('+')[0]}" for name in names]
    counts = Counter(verdict.verdict for verdict in verdicts)
    lines = [
        "# The usual models, by name",
        "",
        "`python tests/bench/usual_models.py --page <this page>`",
        "",
        f"With {', '.join(packages)}. Small directories with random weights are written from "
        "memory as each model is published, and held to their libraries; no file of a hub was "
        "read. Some names share a maker, such as the BERT encoders with mean pooling.",
        "",
        "`equal` is of the small directory. `refused` is what it meets: image-text models lack the "
        "files of their own processors here, so their lines say nothing of real directories.",
        "",
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
        + f", of {len(verdicts)}.",
    ]
    for group in dict.fromkeys(verdict.group for verdict in verdicts):
        lines += ["", f"## {group.capitalize()}", "", "| model | verdict | task | held to, or why "
                  "not |", "|---|---|---|---|"]  # fmt: skip
        lines += [
            f"| {v.name} | {v.verdict} | {v.task} | {v.why.replace('|', '/')} |"
            for v in verdicts
            if v.group == group
        ]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold the usual models to their libraries.")
    parser.add_argument("--only", nargs="+", default=[""], help="what names of models contain")
    parser.add_argument("--out", type=Path, help="where the verdicts go as JSON")
    parser.add_argument("--page", type=Path, help="where they go as a page")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    verdicts: list[Verdict] = []
    for group, models in GROUPS.items():
        for name, usual in models.items():
            if any(part in name for part in args.only):
                verdicts.append(apart(group, name, usual))
                print(*verdicts[-1][1:], sep="\t", flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps(verdicts))
    if args.page is not None:
        args.page.write_text(page(verdicts))
    print(*Counter(verdict.verdict for verdict in verdicts).items(), sep="\t")
    return int(any(verdict.verdict == DIFFERS for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
