"""Jobs of task `generate` over small language models, and what transformers itself writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.job.model import Generate, Message, Model
from pipeline.job.transform import Text
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec
from support.models.language_models import library_model, make_language_model
from support.runs.jobs import job_over

ENDS = (2, *range(100, 140))
"""Tokens that end the texts of random models: with one alone hardly any text would end."""
NEW_TOKENS = 24


def make_writer(folder: Path, family: str = "llama", **options: Any) -> Path:
    """Write a small directory of a family whose texts differ, and end at different lengths.

    The norms and biases of random models alone would decide most of what they write.
    """
    given = {"eos_token_id": [*ENDS], "tie_word_embeddings": False, **options}
    path = make_language_model(folder, family, **given)
    plain_norms(path)
    return path


def plain_norms(path: Path) -> None:
    """Make the norms of a directory's model ones, and its biases zeros."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(path / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 1:
            tensors[name] = torch.full_like(values, float(name.endswith("weight")))
    safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})


def writing(
    path: Path, *, text: Text | None = None, generate: dict[str, Any] | None = None, **model: Any
) -> ModelSpec:
    """Return the model of a job; `Review: {text}` is the prompt unless it says another."""
    fields = {"path": str(path), "task": "generate", "prompt": "Review: {text}", **model}
    if fields.get("messages"):
        fields["messages"] = tuple(Message(**message) for message in fields["messages"])
        del fields["prompt"]
    options = Generate(**{"max_new_tokens": NEW_TOKENS, **(generate or {})})
    model_section = Model(**fields, generate=options)
    return resolve_model(job_over("text", model_section, text=text or Text()))


class Written(NamedTuple):
    """What the library writes."""

    text: str
    tokens: list[int]
    logprob: float


def library_outputs(
    folder: Path, prompts: Sequence[Sequence[int]], **options: Any
) -> list[Written]:
    """Write after prompts of token ids with the library's own `generate`, one by one."""
    import torch
    import transformers

    model, tokenizer = library_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        given = {"inputs": ids, "attention_mask": torch.ones_like(ids), **options}
        outputs.append(greedy(model, tokenizer, given))
    return outputs


def greedy(model: Any, tokenizer: Any, given: Mapping[str, Any]) -> Written:
    """Write to one row with `generate` of a model of the library, which is given these."""
    plain = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    kept = {"return_dict_in_generate": True, "output_logits": True}
    done = model.generate(**{**plain, **kept, **given})
    tokens = done.sequences[0, -len(done.logits) :].tolist()
    pairs = zip(done.logits, tokens, strict=True)
    scores = [logits[0].log_softmax(0)[token] for logits, token in pairs]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Written(text, tokens, float(np.mean(scores)))
