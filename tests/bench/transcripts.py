"""Measure the word error rate of transcripts: `python tests/bench/transcripts.py MODEL`.

MODEL is the directory that whisper_tiny.py makes. espeak-ng says ten sentences; the pipeline writes
them down, and so does transformers' own `generate`, one clip at a time. Words are compared without
capitals and punctuation. The last line is JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import soundfile
import soxr
import torch
import transformers
from machine import machine, today
from systems import run_pipeline
from turns import tell

from pipeline.commit.published.read import read_predictions

RATE_HZ, NEW_TOKENS = 16_000, 64
SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "Please send the report to the office before noon.",
    "It was raining in the city when we came home.",
    "She bought three apples and a loaf of bread.",
    "The train to London leaves at half past seven.",
    "Nobody knows what the weather will be tomorrow.",
    "My brother has lived near the river for ten years.",
    "We should open the window and let in some air.",
    "The doctor said that he would be fine again soon.",
    "All of the children were playing in the garden.",
)


def words_of(text: str) -> list[str]:
    """Return the words of a text without capitals and punctuation."""
    return re.findall(r"[a-z0-9']+", text.lower())


def num_errors(said: list[str], heard: list[str]) -> int:
    """Return how many words must be put in, taken out or replaced."""
    row = [*range(len(heard) + 1)]
    for index, word in enumerate(said, 1):
        last, row[0] = row[0], index
        for place, other in enumerate(heard, 1):
            last, row[place] = (
                row[place],
                min(row[place] + 1, row[place - 1] + 1, last + (word != other)),
            )
    return row[-1]


def error_rate_pct(texts: list[str]) -> float:
    """Return the errors of transcripts in percent of the words of SENTENCES."""
    pairs = [(words_of(a), words_of(b)) for a, b in zip(SENTENCES, texts, strict=True)]
    total = sum(len(said) for said, _ in pairs)
    return 100 * sum(num_errors(said, heard) for said, heard in pairs) / total


def spoken(text: str) -> bytes:
    """Return a WAV in which espeak-ng says a text."""
    command = ["espeak-ng", "--stdout", "-v", "en-us", "-s", "150", text]
    return subprocess.run(command, capture_output=True, check=True).stdout


def by_transformers(model: str, clips: list[bytes]) -> tuple[list[str], float]:
    """Return transcripts of transformers, and what they took in seconds."""
    loaded = transformers.WhisperForConditionalGeneration.from_pretrained(model).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    started, found = time.perf_counter(), []
    for data in clips:
        samples, rate_hz = soundfile.read(io.BytesIO(data), dtype="float32")
        samples = soxr.resample(samples, rate_hz, RATE_HZ)
        given = extractor(samples, sampling_rate=RATE_HZ, return_tensors="pt")
        with torch.inference_mode():
            tokens = loaded.generate(given.input_features, max_new_tokens=NEW_TOKENS)
        found.append(tokenizer.decode(tokens[0], skip_special_tokens=True))
    return found, time.perf_counter() - started


def by_pipeline(model: str, clips: list[bytes], folder: Path) -> tuple[list[str], float]:
    """Return transcripts of a run, and the seconds of its streaming."""
    (folder / "clips").mkdir()
    for number, data in enumerate(clips):
        (folder / "clips" / f"{number}.wav").write_bytes(data)
    job = {
        "source": {"uri": str(folder / "clips"), "format": "audio"},
        "model": {"path": model, "generate": {"max_new_tokens": NEW_TOKENS}},
        "sink": {"uri": str(folder / "out")},
    }
    (folder / "job.yaml").write_text(json.dumps(job))  # JSON is YAML, too
    report = run_pipeline("run", str(folder / "job.yaml"))
    rows = read_predictions(str(folder / "out")).sort_by("row_id")
    return rows["text"].to_pylist(), float(report["streaming_wall_s"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the word error rate of transcripts.")
    parser.add_argument("model")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model, clips = str(Path(options.model).resolve()), [spoken(text) for text in SENTENCES]
    with tempfile.TemporaryDirectory() as name:
        ours, ours_s = by_pipeline(model, clips, Path(name))
    theirs, theirs_s = by_transformers(model, clips)
    for said, heard in zip(SENTENCES, ours, strict=True):
        print(f"{said}\n  {heard}", flush=True)
    results: dict[str, Any] = {
        "word_error_rate_pct": round(error_rate_pct(ours), 1),
        "transformers_word_error_rate_pct": round(error_rate_pct(theirs), 1),
        "equal_rows": sum(a == b for a, b in zip(ours, theirs, strict=True)),
        "streaming_s": round(ours_s, 2),
        "transformers_s": round(theirs_s, 2),
    }
    tell(
        {"date": today(), "machine": machine(), "rows": len(clips), "results": results}, options.out
    )


if __name__ == "__main__":
    main()
