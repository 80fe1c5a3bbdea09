"""Peers of a language model, one process each: the ways that transformers itself offers.

`python tests/bench/peer_language.py WAY MODEL PARQUET NEW_TOKENS BATCH`: `pipeline` is its
`pipeline("text-generation")`, `loop` its `generate` over batches, padded on the left, and
`sorted` the same over prompts sorted by length. The last line is JSON: rows, tokens, the seconds
of the work and the texts.
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
from peer_model import CORES


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
        for row, found in enumerate(write(prompts, batch_size=batch, **options)):
            text = found[0]["generated_text"]
            yield row, text, len(tokenizer(text, add_special_tokens=False)["input_ids"])
        return
    order = range(len(prompts))
    if way == "sorted":
        order = sorted(order, key=lambda row: len(prompts[row]), reverse=True)
    for start in range(0, len(prompts), batch):
        rows = list(order[start : start + batch])
        given = tokenizer([prompts[row] for row in rows], return_tensors="pt", padding=True)
        made = model.generate(**given, max_new_tokens=new_tokens, do_sample=False)
        for row, tokens in zip(rows, made[:, given["input_ids"].shape[1] :].tolist(), strict=True):
            ends = (
                tokens.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in tokens else None
            )
            yield row, tokenizer.decode(tokens[:ends]), len(tokens[:ends])


def main() -> None:
    way, path, file, new_tokens, batch = sys.argv[1:]
    torch.set_num_threads(CORES)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, padding_side="left")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    chats = [json.loads(each) for each in pq.read_table(file)["chat"].to_pylist()]
    begun = time.perf_counter()
    with torch.inference_mode():
        found = list(texts_of(way, model, tokenizer, chats, int(new_tokens), int(batch)))
    took_s = time.perf_counter() - begun
    texts = [text for _, text, _ in sorted(found)]
    tokens = sum(count for _, _, count in found)
    print(json.dumps({"rows": len(found), "tokens": tokens, "work_s": took_s, "texts": texts}))


if __name__ == "__main__":
    main()
