"""Measure tokens/s of written texts: engine generate, engine vllm, transformers' own `generate`.

Each system loads once and writes the same prompts, in turn, three times. Texts are compared: where
two differ, the first token that does is looked up in eager fp32, and the gap between the two logits
there is printed. It runs in the environment of `make test-vllm`:

    build/vllm-env/bin/python tests/bench/texts_written.py build/smollm2
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import machine  # noqa: F401  # says where what tests share lies
import pyarrow as pa
from support.models.language_models import prepared, writing

from pipeline.core.schema import TOKEN_IDS
from pipeline.inference.engines import open_engine
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.texts.text_settings import IDS

Texts = list[str]
_SUBJECTS = ("The train", "A good teacher", "My neighbour's cat", "The old library", "Winter")
_ENDS = ("was late again today.", "is worth writing about.", "made everybody laugh.", "is back.")


def prompts_of(count: int) -> Texts:
    """Return different prompts of 12 to 60 words or so."""
    return [
        f"{_SUBJECTS[n % 5]} {_ENDS[n % 4]} " + "It happened once before. " * (n % 9) + f"Note {n}."
        for n in range(count)
    ]


def written_by(spec: ModelSpec, rows: pa.Table, num_threads: int) -> Callable[[], Texts]:
    """Load an engine; return what writes the rows."""
    limits = {"batch_size": 64, "batch_tokens": 8_192}  # as of a run on the CPU
    config = PredictorConfig(spec, num_gpus=0, num_threads=num_threads,
                             pass_through=pa.schema([]), **limits)  # fmt: skip
    engine = open_engine(config)
    return lambda: engine.predict(rows, {}).column("text").to_pylist()


def written_by_library(spec: ModelSpec, rows: pa.Table, batch_size: int) -> Callable[[], Texts]:
    """Load the library's model; batches are sorted by length, as a careful user would."""
    import torch
    import transformers

    assert spec.directory is not None, "it is a directory"
    path = spec.directory.uri.removeprefix("file://")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    prompts = rows.column(TOKEN_IDS).to_pylist()
    assert spec.task.generation is not None, "it writes"
    most = spec.task.generation.max_new_tokens
    order = sorted(range(len(prompts)), key=lambda n: -len(prompts[n]))

    def write() -> Texts:
        texts = [""] * len(prompts)
        for first in range(0, len(order), batch_size):
            batch = order[first : first + batch_size]
            given = tokenizer.pad({IDS: [prompts[n] for n in batch]}, return_tensors="pt")
            with torch.inference_mode():
                done = model.generate(**given, max_new_tokens=most, do_sample=False)
            new = done[:, given[IDS].shape[1] :]
            for n, text in zip(batch, tokenizer.batch_decode(new, skip_special_tokens=True),
                               strict=True):  # fmt: skip
                texts[n] = text
        return texts

    return write


def gap_at_first_difference(spec: ModelSpec, prompt: list[int], one: str, other: str) -> float:
    """Return how far the logits of the first different tokens of two texts are apart, in fp32."""
    import torch
    import transformers

    assert spec.directory is not None, "it is a directory"
    path = spec.directory.uri.removeprefix("file://")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    a, b = (tokenizer(text, add_special_tokens=False)[IDS] for text in (one, other))
    place = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    if place is None:
        return float("nan")
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *a[:place]]])).logits[0, -1]
    return float((logits[a[place]] - logits[b[place]]).abs())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--times", type=int, default=3)
    asked = parser.parse_args()
    message = {"role": "user", "content": "{text}"}
    options: dict[str, Any] = {"messages": [message], "generate": {"max_new_tokens": asked.tokens}}
    spec = writing(asked.folder, **options)
    rows = prepared(spec, prompts_of(asked.rows))
    systems = {
        "generate": written_by(spec, rows, asked.threads),
        "transformers": written_by_library(spec, rows, 16),
        "vllm": written_by(writing(asked.folder, engine="vllm", **options), rows, asked.threads),
    }
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(asked.folder)
    texts: dict[str, Texts] = {}
    for turn in range(asked.times):
        for name, write in systems.items():
            started = perf_counter()
            texts[name] = write()
            seconds = perf_counter() - started
            tokens = sum(len(ids) for ids in tokenizer(texts[name])[IDS])
            print(
                f"{turn + 1} {name}: {tokens / seconds:.1f} tokens/s, {seconds:.1f} s", flush=True
            )
    prompts = rows.column(TOKEN_IDS).to_pylist()
    for name in ("transformers", "vllm"):
        pairs = [*zip(prompts, texts["generate"], texts[name], strict=True)]
        differing = [pair for pair in pairs if pair[1] != pair[2]]
        gaps = [gap_at_first_difference(spec, *pair) for pair in differing]
        print(f"{name}: {len(differing)} of {len(pairs)} texts differ from engine generate's, "
              f"logits there {[round(gap, 5) for gap in gaps]}")  # fmt: skip


if __name__ == "__main__":
    main()
