"""Measure what a language model chooses and writes, beside transformers' own ways.

    python tests/bench/language.py MODEL [--tasks choices generate] [--rows 64] [--runs 3]
        [--precision bf16] [--peers loop]

MODEL is the directory that `make build/smollm2/config.json` makes. `choices`: reviews, of which the
model says positive or negative; two peers write up to three tokens, as people do it, and `scores`
scores both answers. `generate`: questions whose answers take 1 to 128 tokens. Batches have 16 rows
everywhere. `whole` counts from the start of the process to its end, `steady` the work alone.
Systems take turns. It tells in how many rows the answers of ours and of `scores`, or the texts of
ours and of `loop`, are equal: padding on the left changes the last digits of the peers, and then
sometimes a token. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from machine import BENCH, machine, today
from support.runs.cli import environment
from support.runs.published_rows import read_predictions
from systems import Case, run_job, working_s
from turns import spread, tell

BATCH = 16
NEW_TOKENS = {"choices": 3, "generate": 128}
PEERS = {"choices": ("pipeline", "loop", "scores"), "generate": ("pipeline", "loop")}
ANSWERS = ["positive", "negative"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ASKED = "Is this review positive or negative? Answer with one word.\n\n"
_THINGS = ("film", "phone", "hotel", "book", "meal", "game", "song", "chair")
_OPINIONS = (
    "was wonderful, I would recommend it to everybody",
    "broke after two days and nobody answered my letters",
    "is the best that I have had in years, and it was cheap as well",
    "made me angry: a waste of money and of a whole evening",
)
_QUESTIONS = (
    "What is the capital of {}? Answer with one word.",
    "Name three things that people know of {}.",
    "Write a short story of a child from {}.",
    "Is {} a country? Answer yes or no.",
)
_PLACES = ("France", "Japan", "Kenya", "Peru", "Norway", "India", "Canada")


def texts_of(task: str, rows: int) -> list[str]:
    """Return texts that differ."""
    sentences, subjects = (_OPINIONS, _THINGS) if task == "choices" else (_QUESTIONS, _PLACES)
    texts = (
        (sentences[row % len(sentences)], subjects[row % len(subjects)]) for row in range(rows)
    )
    if task == "choices":
        return [f"Day {row}. The {thing} {text}." for row, (text, thing) in enumerate(texts)]
    return [f"{text.format(place)} It is day {row}." for row, (text, place) in enumerate(texts)]


def write_input(folder: Path, task: str, rows: int, before: str) -> Path:
    folder.mkdir(parents=True)
    texts = texts_of(task, rows)
    chats = [json.dumps([{"role": "user", "content": before + text}]) for text in texts]
    ids = [f"{row:05d}" for row in range(rows)]
    columns = {"id": ids, "text": texts, "chat": chats, "answers": [ANSWERS] * rows}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def ours(case: Case, task: str) -> dict[str, Any]:
    report = run_job(case, "job")
    predictions = read_predictions(str(case.out), report["partition"])
    texts = predictions["label" if task == "choices" else "text"].to_pylist()
    tokens = sum(predictions["num_output_tokens"].to_pylist()) if task == "generate" else len(texts)
    return {
        "rows": len(texts),
        "tokens": tokens,
        "wall_s": len(texts) / report["whole_rows_per_s"],
        "work_s": working_s(report),
        "texts": texts,
    }


def peer(way: str, model: str, file: Path, task: str, precision: str) -> dict[str, Any]:
    begun = time.perf_counter()
    numbers = (str(NEW_TOKENS[task]), str(BATCH), DTYPES[precision])
    done = subprocess.run(
        [sys.executable, str(BENCH / "peer_language.py"), way, model, str(file), *numbers],
        env=environment(),
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "wall_s": time.perf_counter() - begun}


def measure(task: str, model: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    rows, precision = options.rows, options.precision
    before = ASKED if task == "choices" else ""
    file = write_input(folder / task / "in", task, rows, before)
    model_section = {"path": model, "task": task, "batch_size": BATCH, "precision": precision}
    model_section["messages"] = [{"role": "user", "content": f"{before}{{text}}"}]
    if task == "choices":
        model_section["choices"] = ANSWERS
    else:
        model_section["generate"] = {"max_new_tokens": NEW_TOKENS[task], "invalid": "keep"}
    columns = {"format": "parquet", "text_column": "text", "id_column": "id"}
    case = Case(folder / task, file.parent, rows, model_section, columns=columns)
    runs_by_system: dict[str, list[dict[str, Any]]] = {}
    peers = [name for name in PEERS[task] if name in (options.peers or PEERS[task])]
    for _ in range(options.runs):
        for system in ("ours", *peers):
            one = (
                ours(case, task) if system == "ours" else peer(system, model, file, task, precision)
            )
            runs_by_system.setdefault(system, []).append(one)
            print(task, system, {k: v for k, v in one.items() if k != "texts"}, flush=True)
    unit = "rows" if task == "choices" else "tokens"
    result: dict[str, Any] = {
        system: {
            f"whole_{unit}_per_s": spread(one[unit] / one["wall_s"] for one in runs),
            f"steady_{unit}_per_s": spread(one[unit] / one["work_s"] for one in runs),
        }
        for system, runs in runs_by_system.items()
    }
    if same := runs_by_system.get("scores" if task == "choices" else "loop"):
        pairs = zip(runs_by_system["ours"][0]["texts"], same[0]["texts"], strict=True)
        result["equal_rows"] = sum(text == peer_text for text, peer_text in pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a language model.")
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="+", choices=NEW_TOKENS, default=[*NEW_TOKENS])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--peers", nargs="+", choices=PEERS["choices"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = str(Path(options.model).resolve())
        results = {task: measure(task, model, options, Path(name)) for task in options.tasks}
    document = {"date": today(), "machine": machine(), "rows": options.rows, "results": results}
    tell(document | {"precision": options.precision}, options.out)


if __name__ == "__main__":
    main()
