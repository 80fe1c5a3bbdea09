"""Compare every accepted class of the installed transformers with the library itself.

    python tests/bench/reach.py [--tasks classify embed] [--only Bert Yoso] [--out build/reach.json]
        [--more]

Each class gets a directory with random weights, of one or two layers, a tokenizer or processor
beside it. Rows go through the package in batches of four, and through the library one at a time, of
what the package prepared, with `use_cache=False`; both without Ray. Vectors of the library are
pooled in the way that the package says it takes. `equal`: scores and numbers differ by at most
1e-4, or (task raw) are at most twice as far from those of float64 as the library's of float32;
texts do not differ. `equal raw`: the task of the table refuses the class, and with task raw its
outputs are equal. `refused`: by a message of the package. `not built`: the library makes no such
model of a small configuration, or cannot run it on one text or image alone. Exit 1 if a class
differs. Results of tasks that are not run are kept in `--out`; with `--more` those of all classes
that it has. Prints a line per class, and last the numbers of each task and the share that runs, of
the classes that were built.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine  # noqa: F401  # says where what tests share lies
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from reach_models import ATTEMPTS, TABLES, TASKS, Table, class_of, classes_of, rows_of, write_class
from support.models.language_models import library_scores
from support.runs.jobs import job_over

from pipeline.core.errors import PipelineError
from pipeline.core.printable import clean_message
from pipeline.inference.engines import open_engine
from pipeline.job.model import Generate, Model
from pipeline.models.agreement import AgreementLimits
from pipeline.models.directories.model_class import run_once
from pipeline.models.directories.opening import read_facts
from pipeline.models.directories.snapshot import local
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.models.tasks import make_task
from pipeline.preprocessing.model_input import Limits, take_rows

SAME = AgreementLimits(1e-4, 1 - 1e-8, 1e-4, allows_ties=True)
NEW_TOKENS = 6
ALONE = ("input_ids", "pixel_values")
"""Main inputs of which two rows are made."""
MOST_S, MOST_CPU_S, MOST_BYTES = 1_800, 30, 12 << 30
EQUAL, RAW, DIFFERS, REFUSED, NOT_BUILT = "equal", "equal raw", "differs", "refused", "not built"


class Verdict(NamedTuple):
    """What became of one class."""

    task: str
    name: str
    verdict: str
    why: str = ""
    """Of vectors that are equal, the pooling; of `equal raw`, why the task refuses the class."""


def spec_of(folder: Path, task: str, table: Table) -> ModelSpec:
    """Return the model of a job."""
    more = {"generate": Generate(max_new_tokens=NEW_TOKENS)} if task == "generate" else {}
    fields = {} if task == "raw" else table.fields
    model = Model(path=str(folder), task=task, **fields, **more)
    return resolve_model(job_over(table.input, model))


def of_library(
    spec: ModelSpec, cls: Any, folder: Path, prepared: pa.Table, dtype: torch.dtype = torch.float32
) -> list[Any]:
    """Return what the library makes of each row alone: results of the task, texts, or scores."""
    task, inputs = make_task(spec.task), spec.input.arrays(prepared)
    counts = spec.input.lengths(inputs, np.arange(prepared.num_rows))
    model, normalise = cls.from_pretrained(folder).to(dtype).eval(), spec.input.normaliser(dtype)
    results = []
    for row in range(prepared.num_rows):
        if counts is not None:
            given = {
                name: torch.from_numpy(values[row, : counts[row]].astype(np.int64))[None]
                for name, values in inputs.items()
                if name in ("input_ids", "token_type_ids")
            }
            given["attention_mask"] = torch.ones_like(given["input_ids"])
            seen = given
        else:
            [(slot, values)] = take_rows(inputs, [row]).items()
            tensor = np.stack(values) if values.dtype == object else values
            seen = {slot: torch.from_numpy(tensor.copy())}  # as the task gets it
            [ready] = normalise(*seen.values())
            name = "pixel_values" if spec.input.name == "image" else cls.main_input_name
            given = {name: ready}
        with torch.inference_mode():
            if spec.task.kind == "generate":
                results.append(_written(model, given, folder))
            elif spec.task.kind == "choices":
                results.append(_chosen(folder, given["input_ids"][0].tolist(), spec))
            else:
                outputs = _outputs(spec, model, given)
                results.append(
                    {n: v.numpy() for n, v in task.reduce_batch(outputs, 1, seen).items()}
                )
    return results


def _outputs(spec: ModelSpec, model: Any, given: Mapping[str, torch.Tensor]) -> Any:
    """Return logits, boxes, or a vector, as the library computes them."""
    for part in model.modules():
        if hasattr(getattr(part, "config", None), "use_cache"):
            part.config.use_cache = False
    if spec.task.kind == "embed" and hasattr(model, "get_text_features"):
        return _of_tower(spec, model, given)
    outputs = model(**given)
    if spec.task.kind == "detect":
        return {"logits": outputs.logits, "pred_boxes": outputs.pred_boxes}
    if spec.task.kind == "raw":
        return dict(outputs)
    if spec.task.kind != "embed":
        return outputs.logits
    pooling = pooling_of(spec)
    if pooling == "pooler":
        return outputs.pooler_output.flatten(1)
    if pooling == "projection":
        return outputs.image_embeds
    vectors = outputs.last_hidden_state
    if pooling == "cls":
        return vectors[:, 0]
    assert pooling == "mean", pooling
    return vectors.mean(1) if vectors.ndim == 3 else vectors.mean((2, 3))


def _of_tower(spec: ModelSpec, model: Any, given: Mapping[str, torch.Tensor]) -> Any:
    if "input_ids" not in given:
        features = model.get_image_features(**given)
    elif model.config.model_type.startswith("siglip"):  # reads texts of one length, without a mask
        text = spec.input.text
        assert text is not None, "the rows are texts"
        missing = text.max_tokens - given["input_ids"].shape[1]
        ids = torch.nn.functional.pad(given["input_ids"], (0, missing), value=text.pad_id)
        features = model.get_text_features(input_ids=ids)
    else:
        features = model.get_text_features(**given)
    # Releases from 5 on return an object, others the vector.
    vectors = getattr(features, "pooler_output", features)
    return vectors[:, 0] if vectors.ndim == 3 else vectors


def pooling_of(spec: ModelSpec) -> str:
    """Return how the package says that vectors become one; '' where the model itself does it."""
    assert spec.directory is not None, "the model is of a directory"
    pooling = read_facts(local(spec.directory), spec.input.name).pooling
    return "" if pooling is None else ", ".join(pooling.modes)


def _written(model: Any, given: Mapping[str, torch.Tensor], folder: Path) -> str:
    from transformers import AutoTokenizer

    done = model.generate(**given, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[0]
    begin = 1 if model.config.is_encoder_decoder else given["input_ids"].shape[1]
    return AutoTokenizer.from_pretrained(folder).decode(done[begin:], skip_special_tokens=True)


def _chosen(folder: Path, prompt: Sequence[int], spec: ModelSpec) -> npt.NDArray[np.float64]:
    from pipeline.preprocessing.texts.prompts import prompt_tokenizer

    assert spec.input.text is not None, "the rows are texts"
    answers = prompt_tokenizer(spec.input.text).answers(spec.task.prompts)
    scores = np.exp(library_scores(folder, prompt, answers))
    return np.asarray(scores / scores.sum(), np.float64)


def compared(folder: Path, task: str, cls: Any) -> Verdict:
    """Return what becomes of a class."""
    verdicts: dict[Path, Verdict] = {}
    for number, attempt in enumerate(ATTEMPTS[TABLES[task].input]):
        (at := folder / str(number)).mkdir()
        verdicts[at] = verdict = _attempted(at, task, cls, attempt)
        if verdict.verdict in (EQUAL, DIFFERS):
            return verdict
        if _is_of_class(verdict):
            break
    refused = {at: verdict for at, verdict in verdicts.items() if verdict.verdict == REFUSED}
    for at, verdict in refused.items() if TASKS.get(task, task) != "raw" else ():
        raw = _held(at, task, cls, "raw")
        if raw.verdict in (EQUAL, DIFFERS):
            return raw._replace(verdict=RAW, why=verdict.why) if raw.verdict == EQUAL else raw
        if raw.verdict == REFUSED and raw.why != verdict.why:
            refused[at] = verdict._replace(why=f"{verdict.why}; with task raw: {raw.why}")
    for at, verdict in refused.items():
        if not (why := _fails_alone(at, cls)):
            return verdict
        verdicts[at] = Verdict(task, cls.__name__, NOT_BUILT, why)
    return next(iter(verdicts.values()))


def _fails_alone(folder: Path, cls: Any) -> str:
    """Return the error of the library on two rows of the main input; '' if it has none."""
    if cls.main_input_name not in ALONE or hasattr(cls, "get_image_features"):
        return ""
    try:
        outputs = run_once(cls.from_pretrained(folder))
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        outputs = error
    return _error_line(outputs) if isinstance(outputs, Exception) else ""


def _is_of_class(verdict: Verdict) -> bool:
    """Tell whether a class is refused at any size: not for an error of the library."""
    of_library = r"\b(?:Runtime|Index|Type|Attribute|Key)Error\b|hidden_size is null|get_seq_length"
    return verdict.verdict == REFUSED and not re.search(of_library, verdict.why)


def _attempted(folder: Path, task: str, cls: Any, attempt: Mapping[str, Any]) -> Verdict:
    table, name = TABLES[task], cls.__name__
    try:
        writes = table.input == "text" and "prompt" in table.fields
        write_class(folder, cls, table.input, attempt, writes=writes)
    except Exception as error:  # noqa: BLE001  # whatever the library raises
        return Verdict(task, name, NOT_BUILT, _error_line(error))
    return _held(folder, task, cls, TASKS.get(task, task))


def held_by_class(folder: Path, task: str) -> Verdict:
    """Compare a directory with the class that it names."""
    import transformers

    [name] = json.loads((folder / "config.json").read_text())["architectures"]
    return _held(folder, task, getattr(transformers, name), TASKS.get(task, task))


def _held(folder: Path, task: str, cls: Any, task_name: str) -> Verdict:
    table, name = TABLES[task], cls.__name__
    try:
        spec = spec_of(folder, task_name, table)
        prepared = spec.input.prepare(rows_of(table.input), {}, Limits(1 << 30, 1 << 30))
        engine = open_engine(PredictorConfig(spec, 4, 0.0, 1, pa.schema([]), batch_tokens=512))
        rows = engine.predict(prepared, {}).to_pylist()
    except PipelineError as error:
        return Verdict(task, name, REFUSED, _error_line(error))
    try:
        expected = of_library(spec, cls, folder, prepared)
    except Exception as error:  # noqa: BLE001  # as above
        return Verdict(task, name, NOT_BUILT, _error_line(error))
    if not all(np.isfinite(values).all() for result in expected for values in _numbers(result)):
        return Verdict(task, name, NOT_BUILT, "what the library gives is not finite")
    failed = next((row for row in rows if row["error"]), None)
    if failed is not None:
        return Verdict(task, name, REFUSED, f"{failed['error']}: {failed['message']}")
    worst = _difference(spec, expected, rows, engine, prepared)
    if worst and spec.task.kind == "raw":
        precise = of_library(spec, cls, folder, prepared, torch.float64)
        worst = _beyond_noise(spec, precise, expected, engine, prepared) and worst
    if worst:
        return Verdict(task, name, DIFFERS, worst)
    pooling = pooling_of(spec) if spec.task.kind == "embed" else ""
    return Verdict(task, name, EQUAL, pooling)


def _numbers(result: Any) -> Iterable[Any]:
    return result.values() if isinstance(result, dict) else ()


def _difference(
    spec: ModelSpec, expected: Sequence[Any], rows: Sequence[Any], engine: Any, prepared: pa.Table
) -> str:
    if spec.task.kind == "generate":
        pairs = [(row["text"], text) for row, text in zip(rows, expected, strict=True)]
        return "; ".join(f"{ours!r}, not {theirs!r}" for ours, theirs in pairs if ours != theirs)
    if spec.task.kind == "choices":
        off = [
            abs({e["label"]: e["score"] for e in row["top_k"]}[label] - score)
            for row, scores in zip(rows, expected, strict=True)
            for label, score in zip(spec.task.labels, scores, strict=True)
        ]
        return f"scores are off by {max(off):.2g}" if not max(off) <= SAME.max_score_diff else ""
    task, reduced = make_task(spec.task), engine.reduce(spec.input.arrays(prepared))
    pairs = [
        task.compare(result, take_rows(reduced, [row]), SAME) for row, result in enumerate(expected)
    ]
    bad = [pair for pair in pairs if not pair.agrees.all()]
    return f"{len(bad)} of {len(pairs)} rows, such as {bad[0].worst:.4g}" if bad else ""


def _beyond_noise(
    spec: ModelSpec, precise: Sequence[Any], usual: Sequence[Any], engine: Any, prepared: pa.Table
) -> bool:
    """Tell whether a row is further from float64 than twice the worst of the library's float32."""
    task, reduced = make_task(spec.task), engine.reduce(spec.input.arrays(prepared))
    ours = [take_rows(reduced, [row]) for row in range(len(precise))]
    of_ours, of_usual = (
        [task.compare(result, row, SAME) for result, row in zip(precise, rows, strict=True)]
        for rows in (ours, usual)
    )
    most = 2 * max(pair.worst for pair in of_usual)
    return any(not pair.agrees.all() and not pair.worst <= most for pair in of_ours)


def _error_line(error: Exception) -> str:
    return clean_message(f"{type(error).__name__}: {error}", 300)


def _child(task: str, cls: Any, results: Any) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_S, MOST_CPU_S))
    with tempfile.TemporaryDirectory() as folder:
        try:
            verdict = compared(Path(folder), task, cls)
        except Exception as error:  # noqa: BLE001  # what neither side is meant to raise
            verdict = Verdict(task, cls.__name__, DIFFERS, _error_line(error))
    results.send(verdict)


def apart(task: str, cls: Any) -> Verdict:
    """Compare a class in a process of its own, which may crash or never end."""
    fork, name = multiprocessing.get_context("fork"), cls.__name__
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(task, cls, theirs))
    child.start()
    theirs.close()
    try:
        if ours.poll(MOST_S):
            return ours.recv()
        return Verdict(task, name, NOT_BUILT, f"took more than {MOST_S} s")
    except EOFError:
        child.join()
        return Verdict(task, name, NOT_BUILT, f"its process ended with {child.exitcode}")
    finally:
        child.kill()
        child.join()


def warm_up() -> None:
    """Import and make what every class needs, once: the processes of classes are forks."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for task, name in (
        ("classify", "BertForSequenceClassification"),
        ("images", "ViTForImageClassification"),
        ("generate", "LlamaForCausalLM"),
    ):
        with tempfile.TemporaryDirectory() as folder:
            compared(Path(folder), task, getattr(transformers, name))


def main() -> int:
    parser = argparse.ArgumentParser(description="Hold every class to the library.")
    parser.add_argument("--tasks", nargs="+", default=[*TABLES], choices=TABLES)
    parser.add_argument("--only", nargs="+", default=[""], help="what names of classes contain")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--more", action="store_true", help="keep what --out has, and go on")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    warm_up()
    verdicts: list[Verdict] = []
    if args.out is not None and args.out.exists():
        known = [Verdict(*fields) for fields in json.loads(args.out.read_text())]
        verdicts = [verdict for verdict in known if args.more or verdict.task not in args.tasks]
    known_names = {(verdict.task, verdict.name) for verdict in verdicts}
    for task in args.tasks:
        names = [n for n in classes_of(TABLES[task]) if any(part in n for part in args.only)]
        for name in (n for n in names if (task, n) not in known_names):
            try:
                cls = class_of(name, TABLES[task].input)
            except ImportError as error:  # it needs a package that is not here
                verdicts.append(Verdict(task, name, NOT_BUILT, _error_line(error)))
                continue
            if cls is None:
                continue
            verdicts.append(apart(task, cls))
            print(*verdicts[-1], sep="\t", flush=True)
            if args.out is not None:
                args.out.write_text(json.dumps(verdicts))
    for (task, verdict), num in sorted(Counter((v.task, v.verdict) for v in verdicts).items()):
        print(task, verdict, num, sep="\t")
    built = [verdict for verdict in verdicts if verdict.verdict != NOT_BUILT]
    runs = sum(verdict.verdict in (EQUAL, RAW) for verdict in built)
    print("runs", f"{runs} of {len(built)}", f"{100 * runs / max(1, len(built)):.1f}%", sep="\t")
    return int(any(verdict.verdict == DIFFERS for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
