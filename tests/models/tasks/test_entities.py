"""Test that entities are those of transformers' pipeline over the same logits."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.models.tiny_tokenizer import byte_level
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models
from transformers import (
    BertConfig,
    BertForTokenClassification,
    PreTrainedTokenizerFast,
    TokenClassificationPipeline,
)

from pipeline.core.schema import OFFSETS, TEXT, WORD_IDS
from pipeline.models.agreement import AgreementLimits
from pipeline.models.outputs import OutputError
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import Arrays, TaskSpec
from pipeline.preprocessing.texts.tokenizer import WordRule

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "X-O", "Y-LOC")
STRATEGIES = ("none", "simple", "first", "average", "max")
LIMITS = AgreementLimits(0.01, 1.0, 0.0)
_TEXT = (
    "Ada Lovelace met Zo\u00eb in Z\u00fcrich; na\u00efve don't co-op 3.14 caf\u00e9, cafe\u0301, "
    "Stra\u00dfe, \u00c5NGSTR\u00d6M, \u0130stanbul, \ufb01ne \u6771\u4eac \u306b "
    "\u041c\u043e\u0441\u043a\u0432\u0430 \u0391\u03b8\u03ae\u03bd\u03b1 \uc11c\uc6b8 "
    "\u0639\u0631\u0628\u0649 \U0001f600 \U0001f469\u200d\U0001f680 x\u0000y a\u00a0b [SEP] "
    "[MASK] http://a.b/c well-known\ttab\nline ''"
)
WORDS = _TEXT.split(" ")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def make_texts() -> list[str]:
    """Twenty texts of such words in seeded order, an empty one among them."""
    draw = random.Random(20)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 14))) for _ in range(17)]
    return ["", " ", "\u0301", *texts]


TEXTS = make_texts()


def word_piece() -> Tokenizer:
    letters = sorted({c for word in WORDS for c in word.lower()} - set("\u6771\u041c\u0639"))
    pieces = [*SPECIAL, *letters, *(f"##{c}" for c in letters), "ada", "love", "##lace", "##ich"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(token_models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def unigrams() -> Tokenizer:
    pieces = [*SPECIAL, *"\u2581aadelmnoprtvz:;,.34/'", "\u2581A", "\u2581L", "ove", "lace", "ich"]
    weights = [(piece, -float(len(pieces[:5])) / len(piece)) for piece in dict.fromkeys(pieces)]
    tokenizer = Tokenizer(token_models.Unigram(weights, unk_id=1))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "word pieces": word_piece,
    "byte pairs": lambda: byte_level(TEXTS, SPECIAL, 320),
    "unigrams": unigrams,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made = TOKENIZERS[request.param]()
    special = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=special
    )
    made.add_special_tokens(SPECIAL)
    return made


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> BertForTokenClassification:
    torch.manual_seed(20)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.6,
        id2label=dict(enumerate(LABELS)),
        label2id={label: number for number, label in enumerate(LABELS)},
    )
    return BertForTokenClassification(config).eval()


def prepared(tokenizer: Tokenizer) -> pa.Table:
    """The rows of TEXTS as `TextInput.prepare` leaves them."""
    rule, encodings = WordRule.of(tokenizer), tokenizer.encode_batch(TEXTS)
    pairs = zip(TEXTS, encodings, strict=True)
    return pa.table(
        {
            TEXT: pa.array(TEXTS, pa.large_string()),
            OFFSETS: pa.array(
                [list(itertools.chain(*encoding.offsets)) for encoding in encodings],
                pa.list_(pa.int32()),
            ),
            WORD_IDS: pa.array(
                [rule.word_ids(text, encoding) for text, encoding in pairs], pa.list_(pa.int32())
            ),
        }
    )


def logits_of(model: BertForTokenClassification, tokenizer: Tokenizer) -> torch.Tensor:
    """(N, L, K); what stands at padding would be an entity."""
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            ids = torch.tensor([tokenizer.encode(text).ids])
            rows.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
    padded = torch.full((len(rows), max(map(len, rows)), len(LABELS)), -9.0)
    padded[:, :, 1] = 9.0
    for row, logits in enumerate(rows):
        padded[row, : len(logits)] = logits
    return padded


def entities(tokenizer: Tokenizer, logits: torch.Tensor, aggregation: str) -> list[Any]:
    task = make_task(TaskSpec("tokens", labels=LABELS, aggregation=aggregation))
    arrays = {name: t.numpy() for name, t in task.reduce(logits, len(logits)).items()}
    column = task.columns(arrays, np.ones(len(logits), bool), prepared(tokenizer))["entities"]
    column.validate(full=True)
    assert column.type == task.fields()[0].type
    entries: list[Any] = column.to_pylist()
    return entries


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads that wait for each other cost more than such a small model."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_entities_equal_those_of_the_library(
    tokenizer: Tokenizer, model: BertForTokenClassification
):
    logits = logits_of(model, tokenizer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]", model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    library = TokenClassificationPipeline(model=model, tokenizer=wrapped)
    for aggregation in STRATEGIES:
        actual = entities(tokenizer, logits, aggregation)
        name = "entity" if aggregation == "none" else "entity_group"
        for text, ours in zip(TEXTS, actual, strict=True):
            theirs = library(text, aggregation_strategy=aggregation)
            assert [(e["start"], e["end"], e["label"]) for e in ours] == [
                (e["start"], e["end"], e[name]) for e in theirs
            ], (aggregation, text)
            scores = [float(e["score"]) for e in theirs]
            np.testing.assert_allclose([e["score"] for e in ours], scores, atol=1e-6)
            assert [e["text"] for e in ours] == [text[e["start"] : e["end"]] for e in ours]
        assert sum(map(len, actual)) > len(TEXTS)


def rows_of(text: str, *words: tuple[int, int, int]) -> pa.Table:
    """One row of these tokens (start, end, word) between special ones."""
    tokens = [(0, 0, -1), *words, (0, 0, -1)]
    return pa.table(
        {
            TEXT: [text],
            OFFSETS: [[place for token in tokens for place in token[:2]]],
            WORD_IDS: [[token[2] for token in tokens]],
        }
    )


ROWS = rows_of("Ada L\u00f6we \U0001f600", (0, 3, 0), (4, 6, 1), (6, 8, 1), (9, 10, 2))


def arrays_of(labels: list[str], scores: list[float]) -> Arrays:
    ids = [LABELS.index(label) for label in ("MISC", *labels, "MISC", "MISC", "MISC")]
    return {
        "label_id": np.array([ids], np.int32),
        "score": np.array([[0.9, *scores, 0.9, 0.9, 0.9]], np.float32),
    }


def test_tokens_agree_by_label_and_score_whatever_stands_behind_them():
    task = make_task(TaskSpec("tokens", labels=LABELS))

    def arrays(ids: list[int], scores: list[float]) -> Arrays:
        return {"label_id": np.array([ids]), "score": np.array([scores])}

    reference = arrays([1, 2, 0], [0.5, 0.6, 0.0])
    agrees = {
        "the same": arrays([1, 2, 4, 5], [0.5, 0.6, 0.0, 0.0]),
        "another label": arrays([1, 3], [0.5, 0.6]),
        "another score": arrays([1, 2], [0.5, 0.7]),
        "one more token": arrays([1, 2, 0], [0.5, 0.6, 0.005]),
        "one more entity": arrays([1, 2, 3], [0.5, 0.6, 0.005]),
        "no number": arrays([1, 2], [0.5, np.nan]),
    }
    agreements = {name: task.compare(reference, other, LIMITS) for name, other in agrees.items()}
    same = [name for name, agreement in agreements.items() if agreement.agrees.all()]
    assert same == ["the same", "one more token"]


def test_golden_entities_need_places_and_labels_and_are_told_apart():
    task = make_task(TaskSpec("tokens", labels=LABELS))
    arrays = arrays_of(["B-PER", "I-PER", "O", "O"], [0.5, 0.6, 0.8, 0.7])
    published = pa.table(task.columns(arrays, np.ones(1, bool), ROWS))

    def difference(*entities: dict[str, Any]) -> str:
        dtype = pa.list_(
            pa.struct([("start", pa.int64()), ("end", pa.int64()), ("label", pa.string()),
                       ("score", pa.float64())])
        )  # fmt: skip
        expected = task.parse_golden(pa.table({"entities": pa.array([entities], dtype)}))
        return task.differences(expected, published, LIMITS)[0]

    ada = {"start": 0, "end": 6, "label": "PER"}
    assert difference(ada) == ""
    assert difference({**ada, "score": 0.55}) == ""
    assert difference({**ada, "score": 0.7}) == "expected PER at 0-6 0.7000, found 0.5500"
    assert difference({**ada, "end": 8}) == "expected PER at 0-8, found PER at 0-6"
    assert difference() == "expected no PER at 0-6"


def test_outputs_for_fewer_tokens_than_a_row_has_are_no_rows_fault():
    task = make_task(TaskSpec("tokens", labels=LABELS))
    short = {name: values[:, :3] for name, values in arrays_of(["O"] * 4, [0.5] * 4).items()}
    with pytest.raises(OutputError, match=r"output is for 3 tokens, and a row has 6"):
        task.columns(short, np.ones(1, bool), ROWS)


@pytest.mark.parametrize(
    ("known", "actual", "agrees"),
    [
        ([(0, 6, "PER", 0.9)], [(0, 6, "PER", 0.905)], True),
        ([(0, 6, "PER", 0.9)], [(0, 6, "PER", 0.7)], False),
        ([(0, 3, "PER", 0.99), (4, 8, "LOC", 0.5)], [(0, 3, "PER", 0.99)], True),
        ([(0, 3, "PER", 0.99)], [(0, 8, "PER", 0.75)], True),  # a second token that is as likely O
        ([(0, 8, "PER", 0.99)], [], False),
        ([(0, 8, "PER", 0.99)], [(0, 8, "LOC", 0.99)], False),
        ([], [(0, 8, "LOC", 0.99)], False),
    ],
)
def test_an_entity_may_go_only_where_a_token_has_two_labels_of_one_score(
    known: list[tuple[Any, ...]], actual: list[tuple[Any, ...]], agrees: bool
):
    task = make_task(TaskSpec("tokens", labels=LABELS))

    def published(entities: list[tuple[Any, ...]]) -> pa.Table:
        names = ("start", "end", "label", "score")
        rows = [dict(zip(names, entity, strict=True)) for entity in entities]
        return pa.table({"entities": pa.array([rows], task.fields()[0].type)})

    sides = published(known), published(actual)
    [difference] = task.differences(*sides, replace(LIMITS, allows_ties=True))
    assert (difference == "") == agrees
    [strict] = task.differences(*sides, LIMITS)
    assert strict or len(known) == len(actual)
