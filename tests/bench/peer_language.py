"""Peers of a language model, one process each: the ways that transformers itself offers.

`python tests/bench/peer_language.py WAY MODEL PARQUET NEW_TOKENS BATCH DTYPE`: `pipeline` is its
`pipeline("text-generation")`, `loop` its `generate` over batches, padded on the left. `scores` is
how one scores answers with the library: a batch of prompts, each with one of the answers behind it;
the column `answers` of PARQUET has those. The last line is JSON: rows, tokens (the end of a text is
one), the seconds of the work and the texts.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
import torch
import transformers
from peers_photos import CORES


def texts_of(
    way: str, model: Any, tokenizer: Any, chats: Sequence[Any], new_tokens: int, batch: int
) -> Iterator[tuple[int, str, int]]:
    """Yield row, text and its number of tokens."""
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        for chat in chats
    ]
    if way == "pipeline":
        write = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
        options = {"max_new_tokens": new_tokens, "do_sample": False, "return_full_text": False}
        for row, outputs in enumerate(write(prompts, batch_size=batch, **options)):
            text = outputs[0]["generated_text"]
            size = len(tokenizer(text, add_special_tokens=False)["input_ids"])
            yield row, text, min(size + 1, new_tokens)
        return
    for start in range(0, len(prompts), batch):
        given = tokenizer(prompts[start : start + batch], return_tensors="pt", padding=True)
        made = model.generate(**given, max_new_tokens=new_tokens, do_sample=False)
        for row, tokens in enumerate(made[:, given["input_ids"].shape[1] :].tolist(), start):
            has_end = tokenizer.eos_token_id in tokens
            size = tokens.index(tokenizer.eos_token_id) if has_end else len(tokens)
            yield row, tokenizer.decode(tokens[:size]), size + has_end


def scored(
    model: Any, tokenizer: Any, chats: Sequence[Any], answers: Sequence[Sequence[str]], batch: int
) -> Iterator[tuple[int, str, int]]:
    """Yield row, the answer with the greatest mean log-likelihood, and 1."""
    tokenizer.padding_side = "right"
    pairs = [
        (row, answer, tokenizer.apply_chat_template(chat, add_generation_prompt=True))
        for row, (chat, some) in enumerate(zip(chats, answers, strict=True))
        for answer in some
    ]
    scores: dict[int, dict[str, float]] = {}
    for start in range(0, len(pairs), batch):
        some = pairs[start : start + batch]
        prompts = [prompt["input_ids"] for _, _, prompt in some]
        ends = [tokenizer(answer)["input_ids"] for _, answer, _ in some]
        whole = [a + b for a, b in zip(prompts, ends, strict=True)]
        logits = model(**tokenizer.pad({"input_ids": whole}, return_tensors="pt")).logits
        for number, (row, answer, _) in enumerate(some):
            size, end = len(prompts[number]), torch.tensor(ends[number])
            log_probs = logits[number, size - 1 : size - 1 + len(end)].float().log_softmax(1)
            scores.setdefault(row, {})[answer] = float(log_probs.gather(1, end[:, None]).mean())
    for row, by_answer in scores.items():
        yield row, max(by_answer, key=by_answer.__getitem__), 1


def main() -> None:
    way, path, file, new_tokens, batch, dtype = sys.argv[1:]
    torch.set_num_threads(CORES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    model = loaded.eval()
    table = pq.read_table(file)
    chats = [json.loads(chat) for chat in table["chat"].to_pylist()]
    begun = time.perf_counter()
    with torch.inference_mode():
        if way == "scores":
            answers = table["answers"].to_pylist()
            outputs = list(scored(model, tokenizer, chats, answers, int(batch)))
        else:
            outputs = list(texts_of(way, model, tokenizer, chats, int(new_tokens), int(batch)))
    took_s = time.perf_counter() - begun
    texts = [text for _, text, _ in sorted(outputs)]
    tokens = sum(count for _, _, count in outputs)
    print(json.dumps({"rows": len(outputs), "tokens": tokens, "work_s": took_s, "texts": texts}))


if __name__ == "__main__":
    main()
