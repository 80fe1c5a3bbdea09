"""Zero-shot gives the labels and scores of the libraries, and prompts are checked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from support.runs.jobs import job_of
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

from pipeline.core.errors import JobError
from pipeline.models.directories.text.hypotheses import entailment_id, hypotheses, reserved_tokens
from pipeline.models.directories.text.zero_shot import EncoderZeroShot, EntailmentZeroShot
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec

WORDS = [
    "this",
    "example",
    "is",
    "about",
    "sport",
    "news",
    ".",
    "the",
    "match",
    "was",
    "long",
    "and",
    "so",
    "rain",
    "came",
    "again",
]
TEXTS = ["the match was long", "rain came again and again and again", "", "so long news", "rain"]
PROMPTS = ("this example is sport .", "this example is about the news .", "rain .")
NLI_LABELS = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}
NLI: dict[str, Any] = {
    "id2label": NLI_LABELS, "label2id": {label: index for index, label in NLI_LABELS.items()}
}  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "initializer_range": 0.5, "max_position_embeddings": 40,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such small models."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_tokenizer(special: Sequence[str], single: str, pair: str) -> Tokenizer:
    names = [*special, *dict.fromkeys(WORDS)]
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=pair, special_tokens=[(name, vocabulary[name]) for name in special]
    )
    return tokenizer


def bert() -> tuple[Tokenizer, nn.Module]:
    tokenizer = make_tokenizer(
        ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    )
    config = BertConfig(vocab_size=tokenizer.get_vocab_size(), **NLI, **SIZES)
    return tokenizer, BertForSequenceClassification(config).eval()


class Logits(nn.Module):
    """A model of the library as directories give it: tensors in, logits out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **tensors: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.model(**tensors).logits
        return found


class Encoder(nn.Module):
    """The first vector of a text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask)
        return found.last_hidden_state[:, 0]


def batch_of(tokenizer: Tokenizer, pad_id: int) -> dict[str, torch.Tensor]:
    rows = [torch.tensor(tokenizer.encode(text).ids) for text in TEXTS]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return {
        "input_ids": ids, "attention_mask": (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    }  # fmt: skip


def test_a_text_of_all_tokens_but_those_reserved_fits_beside_every_prompt():
    tokenizer, model = bert()
    found = hypotheses(tokenizer, PROMPTS)
    assert reserved_tokens(found) == len(PROMPTS[1].split()) + 1
    length = model.config.max_position_embeddings - reserved_tokens(found)
    module = EntailmentZeroShot(Logits(model), found, 2, 0, has_types=True)
    ids = torch.full((2, length), 5)
    assert module(ids, torch.ones_like(ids)).shape == (2, 3)


def test_an_encoder_compares_the_vectors_of_texts_and_prompts():
    torch.manual_seed(20)
    tokenizer, model = bert()
    encoder = Encoder(BertModel(model.config).eval())
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    module = EncoderZeroShot(encoder, prompts, 0, scale=7.0).eval()
    with torch.no_grad():
        found = module(**batch_of(tokenizer, 0))

        def vector(ids: list[int]) -> torch.Tensor:
            tensor = torch.tensor([ids])
            return encoder(tensor, torch.ones_like(tensor))

        for row, text in enumerate(TEXTS):
            for column, ids in enumerate(prompts):
                cosine = torch.cosine_similarity(vector(tokenizer.encode(text).ids), vector(ids))
                assert float(found[row, column]) == pytest.approx(7 * float(cosine), abs=1e-4)


@pytest.mark.slow
def test_both_are_exported_with_batches_and_lengths_that_vary():
    tokenizer, model = bert()
    dims = {0: torch.export.Dim("rows", max=64), 1: torch.export.Dim("tokens", max=30)}
    batch = batch_of(tokenizer, 0)
    prompts = [tokenizer.encode(prompt).ids for prompt in PROMPTS]
    found = hypotheses(tokenizer, PROMPTS)
    for module in (
        EncoderZeroShot(Encoder(BertModel(model.config)), prompts, 0).eval(),
        EntailmentZeroShot(Logits(model), found, 2, 0, has_types=True).eval(),
    ):
        shapes = dict.fromkeys(batch, dims)
        exported = torch.export.export(module, (), batch, dynamic_shapes=shapes).module()
        other = {name: values[:3, :5] for name, values in batch.items()}
        with torch.no_grad():
            torch.testing.assert_close(exported(**other), module(**other))


def test_what_cannot_be_asked_is_said_in_one_line():
    with pytest.raises(JobError, match=r"labels \(LABEL_0, LABEL_1\) begins with 'entail'"):
        entailment_id(("LABEL_0", "LABEL_1"))
    assert entailment_id(("Entailment", "other")) == 0
    special = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")
    reversed_pairs = make_tokenizer(special, "[CLS] $A [SEP]", "[CLS] $B [SEP] $A [SEP]")
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
