"""Prompts of zero-shot are checked, and leave room for texts; scores: test_library_scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models.snapshots import make_snapshot
from support.runs.jobs import job_of
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from pipeline.core.errors import JobError
from pipeline.models.directories.text.hypotheses import entailment_id, hypotheses
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import load_module
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

PROMPTS = ["the cat", "a long way home by the river", "rain"]


def test_a_text_of_all_tokens_but_those_reserved_fits_beside_every_prompt(tmp_path: Path):
    labels = {0: "contradiction", 1: "neutral", 2: "entailment"}
    path = make_snapshot(tmp_path / "m", "bert", "sequence", id2label=labels)
    job = {"path": str(path), "task": "zero_shot", "prompts": PROMPTS}
    source = {"uri": "in", "format": "jsonl", "text_column": "text"}
    spec = resolve_model(job_of(job, source))
    module = load_module(spec)
    ids = torch.full((2, spec.input.max_tokens), 5)
    assert module(input_ids=ids, attention_mask=torch.ones_like(ids)).shape == (2, 3)
    more = torch.full((2, spec.input.max_tokens + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=more, attention_mask=torch.ones_like(more))


def test_what_cannot_be_asked_is_said_in_one_line():
    with pytest.raises(JobError, match=r"labels \(LABEL_0, LABEL_1\) begins with 'entail'"):
        entailment_id(("LABEL_0", "LABEL_1"))
    assert entailment_id(("Entailment", "other")) == 0
    special = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    reversed_pairs = Tokenizer(WordLevel(special, unk_token="[UNK]"))
    reversed_pairs.pre_tokenizer = pre_tokenizers.Whitespace()
    reversed_pairs.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $B [SEP] $A [SEP]", special_tokens=[*special.items()]
    )
    with pytest.raises(JobError, match="pairs do not begin with the tokens of the first text"):
        hypotheses(reversed_pairs, PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([], "needs prompts, at least two"),
        (["sport"], "needs prompts, at least two"),
        (["sport", "news", "sport"], "prompts: 'sport' is there more than once"),
    ],
)
def test_prompts_are_checked_with_the_job(prompts: list[str], words: str):
    with pytest.raises(JobError, match=words):
        features_job({"task": "zero_shot", "prompts": prompts})


def test_labels_are_the_prompts_or_the_keys_of_a_mapping():
    texts = features_job({"task": "zero_shot", "prompts": ["sport", "news"]}).model
    named = features_job({"task": "zero_shot", "prompts": {"a": "It is a.", "b": "It is b."}}).model
    kind = type(make_task(TaskSpec("zero_shot")))
    assert kind.own_labels(texts) == ("sport", "news")
    assert kind.own_labels(named) == ("a", "b")
    words = "prompts has no effect with task 'regress', only 'zero_shot'"
    with pytest.raises(JobError, match=words):
        features_job({"task": "regress", "prompts": ["sport", "news"]})


def features_job(model: dict[str, Any]) -> Any:
    return job_of(
        {"factory": "models:sums", **model}, {"uri": "in", "format": "parquet", "features": ["a"]}
    )
