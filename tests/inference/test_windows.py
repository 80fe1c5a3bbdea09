"""Test that predictions of long texts are those of a plain loop over windows of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.models.snapshots import make_snapshot
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    TokenClassificationPipeline,
)

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.inference.engines import open_engine
from pipeline.job.job import Job
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits

TOKENS, OVERLAP = 16, 5
TEXT = (
    "the cat sat on a mat, and the dog did not; \U0001f600 \u0645\u0631\u062d\u0628\u0627 "
    "x\0y caf\u00e9 12 Zo\u00eb"
)
WORDS = TEXT.split(" ")


def words(count: int) -> str:
    return " ".join(WORDS[n * 7 % len(WORDS)] for n in range(count))


def texts_of(tokenizer: Any) -> list[str]:
    """Texts around the length of a window, and much longer ones."""
    texts = ["", "a", *map(words, range(3, 40)), words(300)]
    lengths = {len(ids) for ids in tokenizer(texts)["input_ids"]}
    assert {TOKENS, TOKENS + 1} <= lengths
    return texts


def spec_of(
    folder: Path,
    task: str,
    *,
    windows: Any = None,
    text: Any = None,
    source: Any = None,
    **model: Any,
) -> ModelSpec:
    windows = windows or {"tokens": TOKENS, "overlap": OVERLAP}
    job = Job.model_validate(
        {
            "source": {"uri": "x", "format": "parquet", "text_column": "text", **(source or {})},
            "model": {"path": str(folder), "task": task, **model},
            "text": text or {"windows": windows},
            "sink": {"uri": "y"},
        }
    )
    return resolve_model(job)


def predicted(spec: ModelSpec, texts: list[str]) -> list[dict[str, Any]]:
    count = len(texts)
    ids = [f"r{n}" for n in range(count)]
    rows = pa.table(
        {
            "row_id": ids,
            "uri": ids,
            "_text": pa.array(texts, pa.large_string()),
            **failure_columns([None] * count),
        }
    )
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1))
    config = PredictorConfig(spec, 8, 0, 1, pa.schema([]), batch_tokens=64)
    made = open_engine(config).predict(prepared, {})
    assert made.column("error").null_count == count, made.column("message")
    assert not any(made.column("truncated").to_pylist())
    assert made.column("row_id").to_pylist() == ids
    return made.to_pylist()


def windows_of(tokenizer: Any, text: str, tokens: int = TOKENS) -> list[dict[str, Any]]:
    """The windows as transformers cuts them: tensors of a batch of one, and offsets."""
    made = tokenizer(
        text,
        max_length=tokens,
        truncation=True,
        stride=OVERLAP,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    return [
        {
            "tensors": {
                name: torch.tensor([made[name][n]]) for name in ("input_ids", "attention_mask")
            },
            "offsets": made["offset_mapping"][n],
            "special": made["special_tokens_mask"][n],
        }
        for n in range(len(made["input_ids"]))
    ]


FAMILIES = ("bert", "roberta")


@pytest.mark.parametrize("family", FAMILIES)
def test_embeds_windows_and_their_normalised_mean(tmp_path: Path, family: str) -> None:
    folder = make_snapshot(tmp_path / "m", family, pooling="mean", max_seq_length=32)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder)
    texts = texts_of(tokenizer)
    for text, row in zip(texts, predicted(spec_of(folder, "embed"), texts), strict=True):
        vectors, places = [], []
        for window in windows_of(tokenizer, text):
            with torch.no_grad():
                states = model.eval()(**window["tensors"]).last_hidden_state[0]
            vectors.append(states.mean(0).numpy())
            spans = [s for s, x in zip(window["offsets"], window["special"], strict=True) if not x]
            places.append((spans[0][0], spans[-1][1]) if spans else (0, 0))
        assert [e["start"] for e in row["windows"]] == [a for a, _ in places]
        assert [e["end"] for e in row["windows"]] == [b for _, b in places]
        np.testing.assert_allclose([e["embedding"] for e in row["windows"]], vectors, atol=2e-5)
        mean = np.mean(vectors, axis=0)
        np.testing.assert_allclose(row["embedding"], mean / np.linalg.norm(mean), atol=2e-5)
        assert row["num_tokens"] == len(tokenizer(text)["input_ids"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", ["classify", "multilabel"])
def test_classifies_by_mean_and_maximum_of_windows(tmp_path: Path, family: str, task: str) -> None:
    is_multi = task == "multilabel"
    kind = "multi_label_classification" if is_multi else "single_label_classification"
    labels = {n: f"label {n}" for n in range(4)}
    folder = make_snapshot(
        tmp_path / "m", family, "sequence", id2label=labels, num_labels=4, problem_type=kind
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    texts = texts_of(tokenizer)
    more = {"min_score": 0.3} if is_multi else {"top_k": 3}
    for text, row in zip(texts, predicted(spec_of(folder, task, **more), texts), strict=True):
        scores = []
        for window in windows_of(tokenizer, text):
            with torch.no_grad():
                logits = model(**window["tensors"]).logits[0]
            scores.append((logits.sigmoid() if is_multi else logits.softmax(0)).numpy())
        columns = ("labels", "max_labels") if is_multi else ("top_k", "max_top_k")
        for column, fold in zip(columns, (np.mean, np.max), strict=True):
            expected = {labels[n]: score for n, score in enumerate(fold(scores, axis=0))}
            listed = {e["label"]: e["score"] for e in row[column]}
            for label, score in listed.items():
                assert score == pytest.approx(expected[label], abs=1e-5)
            best = sorted(expected, key=lambda label: -expected[label])
            wanted = [x for x in best if expected[x] >= 0.3] if is_multi else best[:3]
            assert [*listed] == wanted
        if not is_multi:
            assert (row["label"], row["score"]) == (*row["top_k"][0].values(),)[::2]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
def test_merges_entities_over_cuts(tmp_path: Path, family: str, aggregation: str) -> None:
    labels = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))
    folder = make_snapshot(tmp_path / "m", family, "token", id2label=labels, num_labels=5)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    library = TokenClassificationPipeline(model=model, tokenizer=tokenizer)
    texts = texts_of(tokenizer)
    made = predicted(spec_of(folder, "tokens", aggregation=aggregation), texts)
    for text, row in zip(texts, made, strict=True):
        # The logits of each token of the text, of the window to whose middle it is nearest.
        ids = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True)
        num_content = len(ids["input_ids"]) - 2
        best: dict[int, tuple[float, np.ndarray]] = {}
        room = TOKENS - 2
        for number, window in enumerate(windows_of(tokenizer, text)):
            with torch.no_grad():
                logits = model(**window["tensors"]).logits[0].numpy()
            first = number * (room - OVERLAP)
            for place in range(len(logits) - 2):
                # A last window that is shorter has its middle where that of a full one would be.
                distance = abs(place - (room - 1) / 2)
                held = best.get(first + place)
                if held is None or distance < held[0]:
                    best[first + place] = distance, logits[1 + place]
        assert len(best) == num_content
        row_logits = np.zeros((num_content + 2, len(labels)), np.float32)
        for place, (_, logits) in best.items():
            row_logits[1 + place] = logits
        entities = library.postprocess(
            [
                {
                    "logits": torch.from_numpy(row_logits)[None],
                    "sentence": text,
                    "input_ids": torch.tensor([ids["input_ids"]]),
                    "offset_mapping": torch.tensor([ids["offset_mapping"]]),
                    "special_tokens_mask": torch.tensor([ids["special_tokens_mask"]]),
                }
            ],
            aggregation_strategy=library._sanitize_parameters(aggregation_strategy=aggregation)[2][
                "aggregation_strategy"
            ],
        )
        ours = [(e["start"], e["end"], e["label"]) for e in row["entities"]]
        theirs = [(e["start"], e["end"], e["entity_group"]) for e in entities]
        assert ours == theirs
        scores = [e["score"] for e in entities]
        np.testing.assert_allclose([e["score"] for e in row["entities"]], scores, atol=1e-5)
        assert all(text[e["start"] : e["end"]] == e["text"] for e in row["entities"])


def test_a_hundred_thousand_tokens_are_windows_of_many_batches(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "m", "bert", pooling="mean", max_seq_length=32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = " ".join(["the cat sat on"] * 25_000)
    spec = spec_of(folder, "embed", windows={"tokens": 32, "overlap": 2})
    [row, short] = predicted(spec, [text, "the cat"])
    room, step = 30, 28
    count = row["num_tokens"] - 2
    assert count >= 100_000
    assert len(row["windows"]) == 1 + -(-(count - room) // step)
    assert row["windows"][-1]["end"] == len(text)
    assert len(short["windows"]) == 1
    last = windows_of(tokenizer, text[row["windows"][-1]["start"] :], 32)[0]["tensors"]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        vector = model(**last).last_hidden_state[0].mean(0).numpy()
    np.testing.assert_allclose(row["windows"][-1]["embedding"], vector, atol=2e-5)


@pytest.mark.parametrize(
    ("text", "model", "message"),
    [
        ({"windows": {"tokens": 65}}, {}, r"text\.windows\.tokens = 65: .* takes 64 at most"),
        ({"windows": {"tokens": 8, "overlap": 6}}, {}, "leaves no room beside 2 special tokens"),
        ({"windows": {"tokens": 8}, "max_tokens": 9}, {}, r"text\.max_tokens: has no effect"),
        ({"windows": {"tokens": 8}}, {"task": "zero_shot", "prompts": ("a", "b")}, "takes none"),
    ],
)
def test_windows_without_a_meaning_are_refused(
    tmp_path: Path, text: dict[str, Any], model: dict[str, Any], message: str
) -> None:
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    folder = make_snapshot(tmp_path / "m", "bert", "sequence", id2label=labels)
    with pytest.raises(JobError, match=message):
        spec_of(folder, **{"task": "classify", **model}, text=text)


def test_pairs_take_no_windows(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "m", "bert", "sequence", num_labels=2)
    with pytest.raises(JobError, match=r"leave out source\.text_pair_column"):
        spec_of(folder, "classify", source={"text_pair_column": "other"})


def test_windows_decide_the_fingerprint(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "m", "bert", pooling="mean", max_seq_length=32)
    windows = ({"tokens": 16}, {"tokens": 16, "overlap": 1}, {"tokens": 17})
    settings = [spec_of(folder, "embed", windows=w).input.settings() for w in windows]
    plain = spec_of(folder, "embed", text={"max_tokens": 16})
    assert len({json.dumps(s, sort_keys=True) for s in (*settings, plain.input.settings())}) == 4
