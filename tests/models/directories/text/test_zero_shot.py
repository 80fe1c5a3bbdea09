"""Test that prompts of zero-shot are checked, and leave room for texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from support.models.snapshots import TEXTS, change_json, make_snapshot
from support.runs.jobs import SOURCES, job_of
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from pipeline.core.errors import JobError
from pipeline.models.directories.model_class import entailment_id
from pipeline.models.directories.opening import read_facts
from pipeline.models.directories.text.tokens import hypotheses
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import load_module

PROMPTS = ["the cat", "a long way home by the river", "rain"]
LABELS = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}


def test_a_text_of_all_tokens_but_those_reserved_fits_beside_every_prompt(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "bert", "sequence", **LABELS)
    job, source = {"path": str(path), "task": "zero_shot", "prompts": PROMPTS}, SOURCES["text"]
    spec = resolve_model(job_of(job, source))
    module = load_module(spec)
    ids = torch.full((2, spec.input.max_tokens), 5)
    assert module(input_ids=ids, attention_mask=torch.ones_like(ids)).shape == (2, 3)
    more = torch.full((2, spec.input.max_tokens + 1), 5)
    with pytest.raises((IndexError, RuntimeError)):
        module(input_ids=more, attention_mask=torch.ones_like(more))
    most = rf"text\.max_tokens = 64: Bert.* takes {spec.input.max_tokens} at most"
    with pytest.raises(JobError, match=most):
        resolve_model(job_of(job, source, text={"max_tokens": 64}))
    alone = resolve_model(job_of({"path": str(path)}, source))
    assert alone.input.max_tokens == 64


@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_a_long_text_is_scored_by_the_tokens_that_fit_with_every_prompt(
    family: str, tmp_path: Path
):
    path = make_snapshot(tmp_path / "m", family, "sequence", **LABELS)
    job = {"path": str(path), "task": "zero_shot", "prompts": PROMPTS}
    spec = resolve_model(job_of(job, SOURCES["text"]))
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(path).eval()
    long = " ".join(TEXTS * 20)
    text = tokenizer(long, truncation=True, max_length=spec.input.max_tokens)["input_ids"]
    assert len(text) == spec.input.max_tokens
    expected = []
    for prompt in PROMPTS:
        pair = tokenizer("the", prompt, return_tensors="pt")
        start = len(tokenizer("the")["input_ids"])
        given = {name: values[:, start:] for name, values in pair.items()}
        given["input_ids"] = torch.tensor([[*text, *given["input_ids"][0].tolist()]])
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        if "token_type_ids" in given:
            given["token_type_ids"] = torch.nn.functional.pad(
                given["token_type_ids"], (len(text), 0)
            )
        with torch.inference_mode():
            expected.append(theirs(**given).logits[0, 2])
    ids = torch.tensor([text])
    with torch.inference_mode():
        actual = load_module(spec)(input_ids=ids, attention_mask=torch.ones_like(ids))
    torch.testing.assert_close(actual[0], torch.stack(expected), atol=1e-4, rtol=1e-4)


def test_what_cannot_be_asked_is_said_in_one_line():
    assert entailment_id(("LABEL_0", "LABEL_1")) is None
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
    ("family", "head", "rows"), [("bert", "sequence", "text"), ("clip", "none", "image")]
)
def test_a_tokenizer_that_panics_over_prompts_is_one_line(
    family: str, head: str, rows: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    path = make_snapshot(tmp_path / "m", family, head, **LABELS if family == "bert" else {})
    tokenizer = path / "tokenizer.json"
    post = {**json.loads(tokenizer.read_text())["post_processor"], "special_tokens": {}}
    change_json(tokenizer, post_processor=post)
    job = job_of({"path": str(path), "task": "zero_shot", "prompts": PROMPTS}, SOURCES[rows])
    with pytest.raises(JobError, match=r"tokenizer\.json") as caught:
        load_module(resolve_model(job))
    assert "\n" not in str(caught.value)
    assert "panicked" not in capfd.readouterr().err


def test_two_towers_serve_texts_and_prompts_only_with_a_tokenizer(tmp_path: Path):
    path = make_snapshot(tmp_path / "m", "clip")
    assert read_facts(path).tasks == ("embed", "zero_shot")
    (path / "tokenizer.json").unlink()
    assert read_facts(path).tasks == ("embed",)
