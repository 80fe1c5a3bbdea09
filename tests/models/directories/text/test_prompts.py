"""Directories of NLI models and of encoders serve task zero_shot with the prompts of a job."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.models.snapshots import TEXTS, make_snapshot
from support.runs.jobs import job_over

from pipeline.core.errors import JobError
from pipeline.job.model import Model
from pipeline.job.text import Text
from pipeline.models.directories.build import build_module
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.tasks.base import TaskSpec

PROMPTS = ("the cat sat on the mat .", "rain in the city .", "a dog .")
NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
SPEC = TaskSpec("zero_shot", labels=("cat", "rain", "dog"), top_k=3, prompts=PROMPTS)


def test_an_encoder_compares_texts_and_prompts(tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    path = make_snapshot(tmp_path / "model", "bert", pooling="mean")
    facts = read_facts(path)
    library = SentenceTransformer(str(path), device="cpu")
    batch = library.tokenizer(list(TEXTS), padding=True, return_tensors="pt")
    module = build_module(path, facts, SPEC)
    with torch.inference_mode():
        found = module(batch["input_ids"], batch["attention_mask"])
    cosines = library.similarity(library.encode(list(TEXTS)), library.encode(list(PROMPTS)))
    torch.testing.assert_close(found, 20 * cosines, atol=1e-4, rtol=0)


def test_texts_leave_room_for_the_longest_prompt(tmp_path: Path):
    path = make_snapshot(tmp_path / "model", "bert", "sequence", id2label=NLI)
    facts = read_facts(path)
    assert facts.text is not None

    def most(*prompts: str, **wanted: int) -> int:
        asked = {"task": "zero_shot", "prompts": prompts} if prompts else {}
        model = Model(path=str(path), **asked)
        return resolve_model(job_over("text", model, text=Text(**wanted))).input.max_tokens

    assert most() == facts.text.max_tokens
    assert most("a dog", "the cat sat") == facts.text.max_tokens - 4  # three words and [SEP]
    with pytest.raises(JobError, match=r"text\.max_tokens = 64: Bert.* takes 60 at most"):
        most("a dog", "the cat sat", max_tokens=64)
