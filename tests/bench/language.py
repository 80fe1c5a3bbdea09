"""Measure what a language model chooses and writes, beside transformers' own ways.

    python tests/bench/language.py MODEL [--tasks choices generate] [--rows 64] [--runs 3]
        [--precision bf16] [--examples] [--peers loop]

MODEL is the directory that `make build/smollm2/config.json` makes. `choices`: reviews, of which the
model says positive or negative; two peers write up to three tokens, as people do it, and `scores`
scores both answers. With `--examples` what is meant and four reviews with their answers stand
before each. `generate`: questions whose answers take 1 to 128 tokens. Batches have 16 rows
everywhere. `whole` counts from the start of the process to its end, `steady` the work alone: of
ours as in the second half of the rows. Systems take turns. It tells in how many rows the answers of
ours and of `scores`, or the texts of ours and of `loop`, are equal: padding on the left changes the
last digits of the peers, and then sometimes a token. The last line is JSON.
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
from machine import machine, today
from systems import BENCH, Case, environment, run_pipeline, staged_slices, steady_of
from turns import spread, tell

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.runs.published_rows import read_predictions

BATCH = 16
NEW_TOKENS = {"choices": 3, "generate": 128}
PEERS = {"choices": ("pipeline", "loop", "scores"), "generate": ("pipeline", "loop", "sorted")}
ANSWERS = ["positive", "negative"]
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
ASKED = "Is this review positive or negative? Answer with one word.\n\n"
EXAMPLES = (
    "A review is positive if its author would buy the thing again, and negative otherwise. What "
    "matters is how it ends, and not a word of praise or blame on the way.\n\n"
    "Review: I did not expect much, and now I take it everywhere. Answer: positive\n"
    "Review: It looked fine in the shop, and fell apart on the way home. Answer: negative\n"
    "Review: The box was torn, but what was in it is perfect. Answer: positive\n"
    "Review: Everybody told me to go, and I wish that I had not. Answer: negative\n\n"
)
"""They stand before what is asked, with `--examples`."""
_THINGS = ("film", "phone", "hotel", "book", "meal", "game", "song", "chair")
_SAID = (
    "was wonderful, I would recommend it to everybody",
    "broke after two days and nobody answered my letters",
    "is the best that I have had in years, and it was cheap as well",
    "made me angry: a waste of money and of a whole evening",
    "kept me happy through a long and rainy week",
    "was dull, slow and much too long",
)
_QUESTIONS = (
    "What is the capital of {}? Answer with one word.",
    "Name three things that people know of {}.",
    "Write a short story of a child from {}.",
    "Is {} a country? Answer yes or no.",
    "Describe the food of {} in two sentences.",
)
_PLACES = ("France", "Japan", "Kenya", "Peru", "Norway", "India", "Canada", "Egypt", "Chile")


def texts_of(task: str, rows: int) -> list[str]:
    """Return texts that differ."""
    if task == "choices":
        return [
            f"Day {row}. The {_THINGS[row % len(_THINGS)]} {_SAID[row % len(_SAID)]}."
            for row in range(rows)
        ]
    return [
        _QUESTIONS[row % len(_QUESTIONS)].format(_PLACES[row % len(_PLACES)])
        + (f" It is day {row}." if row >= len(_QUESTIONS) * len(_PLACES) else "")
        for row in range(rows)
    ]


def write_input(folder: Path, task: str, rows: int, before: str = "") -> Path:
    folder.mkdir(parents=True)
    texts = texts_of(task, rows)
    chats = [json.dumps([{"role": "user", "content": before + text}]) for text in texts]
    ids = [f"{row:05d}" for row in range(rows)]
    columns = {"id": ids, "text": texts, "chat": chats, "answers": [ANSWERS] * rows}
    pq.write_table(pa.table(columns), folder / "a.parquet")
    return folder / "a.parquet"


def ours(case: Case, task: str) -> dict[str, Any]:
    out = case.folder / f"out-{time.time_ns()}"
    begun = time.perf_counter()
    report = run_pipeline("run", case.job("job", out))
    wall_s = time.perf_counter() - begun
    found = read_predictions(str(out))
    texts = found["label" if task == "choices" else "text"].to_pylist()
    tokens = sum(found["num_output_tokens"].to_pylist()) if task == "generate" else len(texts)
    steady = steady_of(staged_slices(out)) or len(texts) / report["streaming_wall_s"]
    return {
        "rows": len(texts),
        "tokens": tokens,
        "wall_s": wall_s,
        "work_s": len(texts) / steady,
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
    if task == "choices" and options.examples:
        before = EXAMPLES + ASKED
    file = write_input(folder / task / "in", task, rows, before)
    content = f"{before}{{text}}"
    section: dict[str, Any] = {"messages": [{"role": "user", "content": content}]}
    if task == "choices":
        section["choices"] = ANSWERS
    else:
        section["generate"] = {"max_new_tokens": NEW_TOKENS[task], "invalid": "keep"}
    said = {"path": model, "task": task, "batch_size": BATCH, "precision": precision}
    columns = {"format": "parquet", "text_column": "text", "id_column": "id"}
    said |= section
    case = Case(folder / task, file.parent, rows, said, columns=columns)
    found: dict[str, list[dict[str, Any]]] = {}
    peers = [each for each in PEERS[task] if each in (options.peers or PEERS[task])]
    for _ in range(options.runs):
        for system in ("ours", *peers):
            one = (
                ours(case, task) if system == "ours" else peer(system, model, file, task, precision)
            )
            found.setdefault(system, []).append(one)
            print(task, system, {k: v for k, v in one.items() if k != "texts"}, flush=True)
    unit = "rows" if task == "choices" else "tokens"
    result: dict[str, Any] = {
        system: {
            f"whole_{unit}_per_s": spread(one[unit] / one["wall_s"] for one in each),
            f"steady_{unit}_per_s": spread(one[unit] / one["work_s"] for one in each),
        }
        for system, each in found.items()
    }
    if same := found.get("scores" if task == "choices" else "loop"):
        pairs = zip(found["ours"][0]["texts"], same[0]["texts"], strict=True)
        result["equal_rows"] = sum(own == its for own, its in pairs)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a language model.")
    parser.add_argument("model")
    parser.add_argument("--tasks", nargs="+", choices=NEW_TOKENS, default=[*NEW_TOKENS])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--precision", choices=DTYPES, default="fp32")
    parser.add_argument("--examples", action="store_true")
    parser.add_argument("--peers", nargs="+", choices=sorted({*sum(PEERS.values(), ())}))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        model = str(Path(options.model).resolve())
        results = {task: measure(task, model, options, Path(name)) for task in options.tasks}
    found = {"date": today(), "machine": machine(), "rows": options.rows, "results": results}
    found |= {"precision": options.precision, "examples": options.examples}
    tell(found, options.out)


if __name__ == "__main__":
    main()
