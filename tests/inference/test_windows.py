"""Test that predictions of long texts are those of a plain loop over windows of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import onnx_files
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
MANY = 60_000
"""Words of a text with more than 100,000 tokens."""
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


def outcomes(spec: ModelSpec, texts: list[str], batch_tokens: int = 64) -> list[dict[str, Any]]:
    """Predict texts, with one more column of them that is passed through."""
    count = len(texts)
    ids = [f"r{n}" for n in range(count)]
    rows = pa.table(
        {
            "row_id": ids,
            "uri": ids,
            "_text": pa.array(texts, pa.large_string()),
            "note": pa.array(texts, pa.large_string()),
            **failure_columns([None] * count),
        }
    )
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1))
    copied = pa.schema([("note", pa.large_string())])
    config = PredictorConfig(spec, 8, 0, 1, copied, batch_tokens=batch_tokens)
    made = open_engine(config).predict(prepared, {})
    assert not any(made.column("truncated").to_pylist())
    assert made.column("row_id").to_pylist() == ids
    assert made.column("note").to_pylist() == texts
    return made.to_pylist()


def predicted(spec: ModelSpec, texts: list[str], batch_tokens: int = 64) -> list[dict[str, Any]]:
    made = outcomes(spec, texts, batch_tokens)
    assert not any(row["error"] for row in made), made
    return made


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


def logits_of(model: Any, windows: list[dict[str, Any]]) -> list[np.ndarray]:
    """The logits of each window; those of one length are batches."""
    made: dict[int, np.ndarray] = {}
    lengths = [window["tensors"]["input_ids"].shape[1] for window in windows]
    for length in set(lengths):
        alike = [number for number, other in enumerate(lengths) if other == length]
        for part in (alike[n : n + 256] for n in range(0, len(alike), 256)):
            names = windows[part[0]]["tensors"]
            batch = {name: torch.cat([windows[n]["tensors"][name] for n in part]) for name in names}
            with torch.no_grad():
                made |= zip(part, model(**batch).logits.numpy(), strict=True)
    return [made[number] for number in range(len(windows))]


FAMILIES = ("bert", "roberta")
ENTITIES = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))


def labelling(folder: Path, family: str) -> Path:
    """Write a model that gives each label to some tokens, with scores that differ."""
    make_snapshot(folder, family, "token", id2label=ENTITIES, num_labels=len(ENTITIES))
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        model.classifier.weight *= 50
        given = AutoTokenizer.from_pretrained(folder)(words(20), return_tensors="pt")
        model.classifier.bias -= model(**given).logits[0].mean(dim=0)
    model.save_pretrained(folder)
    return folder


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
    texts = [*texts_of(tokenizer), words(MANY if family == "bert" else 400)]
    more = {"min_score": 0.3} if is_multi else {"top_k": 3}
    made = predicted(spec_of(folder, task, **more), texts, batch_tokens=4096)
    for text, row in zip(texts, made, strict=True):
        logits = torch.from_numpy(np.stack(logits_of(model, windows_of(tokenizer, text))))
        scores = (logits.sigmoid() if is_multi else logits.softmax(1)).double().numpy()
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
    assert made[-1]["num_tokens"] > (100_000 if family == "bert" else 600)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("aggregation", ["simple", "first", "average", "max"])
def test_merges_entities_over_cuts(tmp_path: Path, family: str, aggregation: str) -> None:
    folder = labelling(tmp_path / "m", family)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForTokenClassification.from_pretrained(folder).eval()
    library = TokenClassificationPipeline(model=model, tokenizer=tokenizer)
    is_longest = (family, aggregation) == ("bert", "simple")
    texts = [*texts_of(tokenizer), words(MANY if is_longest else 400)]
    made = predicted(spec_of(folder, "tokens", aggregation=aggregation), texts, batch_tokens=4096)
    for text, row in zip(texts, made, strict=True):
        # The logits of each token of the text, of the window to whose middle it is nearest.
        ids = tokenizer(text, return_special_tokens_mask=True, return_offsets_mapping=True)
        num_content = len(ids["input_ids"]) - 2
        best: dict[int, tuple[float, np.ndarray]] = {}
        room = TOKENS - 2
        for number, logits in enumerate(logits_of(model, windows_of(tokenizer, text))):
            first = number * (room - OVERLAP)
            for place in range(len(logits) - 2):
                # A last window that is shorter has its middle where that of a full one would be.
                distance = abs(place - (room - 1) / 2)
                held = best.get(first + place)
                if held is None or distance < held[0]:
                    best[first + place] = distance, logits[1 + place]
        assert len(best) == num_content
        row_logits = np.zeros((num_content + 2, len(ENTITIES)), np.float32)
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
    assert made[-1]["num_tokens"] > (100_000 if is_longest else 600)
    assert {entity["label"] for entity in made[-1]["entities"]} == {"PER", "LOC"}


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


def test_windows_have_nothing_of_a_row_but_its_id_failure_and_tokens(tmp_path: Path) -> None:
    folder = make_snapshot(tmp_path / "m", "bert", "token", num_labels=3, max_seq_length=32)
    seen = spec_of(folder, "tokens").input
    ids, failures = ["a", "b"], failure_columns([None, None])
    texts = pa.array([words(300), "a"], pa.large_string())
    rows = pa.table({"row_id": ids, "_text": texts, "note": texts, **failures})
    windows = seen.windows(seen.prepare(rows, {}, Limits(1 << 30, 1)))
    assert windows is not None
    assert windows.rows.num_rows == len(windows.owners) > 50
    tokens = {"_token_ids", "_token_types", "num_tokens"}
    assert {*windows.rows.column_names} <= {"row_id", *failures, *tokens}


@pytest.mark.parametrize("task", ["embed", "tokens"])
def test_a_window_that_fails_fails_its_row_alone(tmp_path: Path, task: str) -> None:
    """A token whose vector is not finite is in the last window of one row."""
    head = {"head": "token", "num_labels": 3} if task == "tokens" else {"pooling": "mean"}
    folder = make_snapshot(tmp_path / "m", "bert", **head)
    [token] = AutoTokenizer.from_pretrained(folder)("mat", add_special_tokens=False)["input_ids"]
    weights = load_file(folder / "model.safetensors")
    [name] = [name for name in weights if name.endswith("word_embeddings.weight")]
    weights[name][token] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    long = " ".join(["the cat sat on"] * 40)
    made = outcomes(spec_of(folder, task), [long, f"{long} mat", "the cat", "mat", f"{long} a"])
    assert [row["error"] for row in made] == [None, "non_finite", None, "non_finite", None]


def test_windows_of_an_onnx_file_are_those_of_its_directory(tmp_path: Path) -> None:
    folder = labelling(tmp_path / "m", "bert")
    onnx_files.save(
        onnx_files.kept(onnx_files.exported_texts(folder), {"words": "logits"}),
        folder / "model.onnx",
    )
    texts = ["", "a", words(20), words(300)]
    of_file = predicted(spec_of(folder / "model.onnx", "tokens"), texts)
    of_folder = predicted(spec_of(folder, "tokens"), texts)
    assert len(of_file[-1]["entities"]) > 20
    for one, other in zip(of_file, of_folder, strict=True):
        spans, others = (
            [(e["start"], e["end"], e["label"]) for e in row["entities"]] for row in (one, other)
        )
        assert spans == others
        scores, wanted = ([e["score"] for e in row["entities"]] for row in (one, other))
        np.testing.assert_allclose(scores, wanted, atol=1e-5)


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
