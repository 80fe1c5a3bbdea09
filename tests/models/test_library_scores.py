"""Scores of model directories are those of the library's own pipeline, for each family and task.

`CASES` has a row for each: what is made (random weights), which task reads it, what the library's
pipeline gives, and how far scores may be apart (absolute). Both sides see the same encoded images
or texts; nothing but the pipeline's own way from bytes to published columns is between them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.models.snapshots import (
    PAIRS,
    TEXT_FAMILIES,
    TEXTS,
    change_json,
    make_snapshot,
    make_timm,
)
from support.runs.jobs import job_of

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT, TEXT_PAIR
from pipeline.inference.engines.torch_engine import TorchEngine
from pipeline.models.directories.text.zero_shot import SCALE
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import PredictorConfig
from pipeline.preprocessing.model_input import Limits

NAMES = {0: "cold", 1: "warm", 2: "hot"}
_NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
NLI = {"id2label": _NLI, "label2id": {label: number for number, label in _NLI.items()}}
PROMPTS = ("a dog", "the cat sat on the mat", "rain in the city")
Found = list[Any]
"""For each row: label -> score, or numbers, or entities."""
Columns = Callable[[dict[str, Any]], Any]


def noise(size: tuple[int, int], seed: int) -> bytes:
    """An encoded image without losses, so that decoders agree."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [noise(size, seed) for seed, size in enumerate([(40, 52), (64, 36), (36, 36)])]


def opened() -> list[Image.Image]:
    return [Image.open(io.BytesIO(data)).convert("RGB") for data in IMAGES]


# ------------------------------------------------------------------- what the libraries give


def of_pipeline(task: str, **options: Any) -> Callable[[Path, Any], Found]:
    """A pipeline of transformers with labels and scores."""

    def give(path: Path, rows: Any) -> Found:
        from transformers import pipeline

        found = pipeline(task, model=str(path), device="cpu")(list(rows), **options)
        return [{each["label"]: each["score"] for each in row} for row in found]

    return give


def of_nli(path: Path, rows: Any) -> Found:
    from transformers import pipeline

    classify = pipeline("zero-shot-classification", model=str(path), device="cpu")
    found = classify(list(rows), list(PROMPTS), hypothesis_template="{}")
    return [dict(zip(each["labels"], each["scores"], strict=True)) for each in found]


def of_numbers(path: Path, rows: Any) -> Found:
    """A regression: the pipeline applies no function."""
    found = of_pipeline("text-classification", top_k=None)(path, rows)
    return [[*each.values()] for each in found]


def of_cross_encoder(path: Path, rows: Any) -> Found:
    from sentence_transformers import CrossEncoder

    pairs = [list(pair) for pair in rows]
    return [[score] for score in CrossEncoder(str(path), device="cpu").predict(pairs).tolist()]


def of_encoder(path: Path, rows: Any) -> Found:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(path), device="cpu").encode(list(rows)).tolist()


def of_similarities(path: Path, rows: Any) -> Found:
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(path), device="cpu")
    cosines = util.cos_sim(model.encode(list(rows)), model.encode(list(PROMPTS)))
    scores = (SCALE * cosines).softmax(1).tolist()
    return [dict(zip(PROMPTS, row, strict=True)) for row in scores]


def of_timm(path: Path, rows: Any) -> Found:
    import timm
    from timm.data import create_transform, resolve_data_config

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=model))
    with torch.inference_mode():
        scores = model(torch.stack([transform(image) for image in rows])).softmax(1)
    return [dict(zip(("cat", "dog", "fox"), row, strict=True)) for row in scores.tolist()]


def of_tokens(aggregation: str) -> Callable[[Path, Any], Found]:
    def give(path: Path, rows: Any) -> Found:
        from transformers import pipeline

        tag = pipeline(
            "token-classification", str(path), aggregation_strategy=aggregation, device="cpu"
        )
        label = "entity" if aggregation == "none" else "entity_group"
        return [
            [(each["start"], each["end"], each[label], float(each["score"])) for each in row]
            for row in tag(list(rows))
        ]

    return give


# ------------------------------------------------------------------------------- the cases


def best(row: dict[str, Any]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in row["top_k"]}


def labels(row: dict[str, Any]) -> dict[str, float]:
    return {each["label"]: each["score"] for each in row["labels"]}


def entities(row: dict[str, Any]) -> list[tuple[int, int, str, float]]:
    return [(e["start"], e["end"], e["label"], e["score"]) for e in row["entities"]]


class Case(NamedTuple):
    """A directory, the library's own pipeline over it, and ours."""

    make: Callable[[Path], Path]
    library: Callable[[Path, Any], Found]
    columns: Columns
    """The same of a published row."""
    rows: Sequence[Any] = TEXTS
    model: Mapping[str, Any] = {}
    tolerance: float = 1e-5


def made(family: str, head: str = "none", **options: Any) -> Callable[[Path], Path]:
    return lambda folder: make_snapshot(folder, family, head, **options)


def convnext(folder: Path) -> Path:
    """ConvNeXt with the processor that its file names; the library's own resizes otherwise."""
    path = make_snapshot(folder, "convnext", "image", id2label=NAMES)
    change_json(path / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    return path


def siglip(folder: Path) -> Path:
    """SigLIP as it is: texts of 64 tokens, and a tokenizer that gives no attention mask."""
    path = make_snapshot(folder, "siglip", max_tokens=64)
    change_json(path / "tokenizer_config.json", model_input_names=["input_ids"])
    return path


def timm(name: str) -> Callable[[Path], Path]:
    names = ["cat", "dog", "fox"]
    return lambda folder: make_timm(folder, name, 3, label_names=names, img_size=32)


ALL_TEXT = of_pipeline("text-classification", top_k=None)
ALL_IMAGES = of_pipeline("image-classification", top_k=None, function_to_apply=None)
ZERO_SHOT = of_pipeline(
    "zero-shot-image-classification", candidate_labels=PROMPTS, hypothesis_template="{}"
)
FAMILIES = (*TEXT_FAMILIES,)
MULTI = {"id2label": NAMES, "problem_type": "multi_label_classification"}
EVERY = {"task": "multilabel", "min_score": 0.0}
CASES = {
    **{
        f"{family} classify": Case(made(family, "sequence", id2label=NAMES), ALL_TEXT, best)
        for family in FAMILIES
    },
    "bert multilabel": Case(made("bert", "sequence", **MULTI), ALL_TEXT, labels, model=EVERY),
    "bert regress": Case(
        made("bert", "sequence", num_labels=1, problem_type="regression"),
        of_numbers,
        lambda row: [row["value"]],
        model={"task": "regress"},
        tolerance=1e-4,
    ),
    **{
        f"{family} score": Case(
            made(family, "sequence", num_labels=1),
            of_cross_encoder,
            lambda row: [row["score"]],
            rows=PAIRS,
        )
        for family in ("bert", "roberta")
    },
    **{
        f"bert tokens {aggregation}": Case(
            made("bert", "token", num_labels=3),
            of_tokens(aggregation),
            entities,
            model={"aggregation": aggregation},
        )
        for aggregation in ("none", "simple", "first", "average", "max")
    },
    **{
        f"{family} tokens": Case(
            made(family, "token", num_labels=5),
            of_tokens("simple"),
            entities,
            model={"aggregation": "simple"},
        )
        for family in FAMILIES[1:]
    },
    **{
        f"{family} zero_shot": Case(
            made(family, "sequence", **NLI),
            of_nli,
            best,
            model={"task": "zero_shot", "prompts": PROMPTS},
        )
        for family in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")
    },
    "bert encoder zero_shot": Case(
        made("bert", pooling="cls"),
        of_similarities,
        best,
        model={"task": "zero_shot", "prompts": PROMPTS},
    ),
    **{
        f"{family} embed": Case(
            made(family, pooling="mean", normalize=True), of_encoder, lambda row: row["embedding"]
        )
        for family in FAMILIES
    },
    **{
        f"{family} classify": Case(
            made(family, "image", id2label=NAMES), ALL_IMAGES, best, opened(), tolerance=2e-4
        )
        for family in ("vit", "dinov2")
    },
    "convnext classify": Case(convnext, ALL_IMAGES, best, opened(), tolerance=2e-4),
    "vit multilabel": Case(
        made("vit", "image", **MULTI), ALL_IMAGES, labels, opened(), EVERY, tolerance=2e-4
    ),
    "timm classify": Case(timm("vit_tiny_patch16_224"), of_timm, best, opened(), tolerance=1e-3),
    **{
        f"{family} zero_shot": Case(
            make,
            ZERO_SHOT,
            best,
            opened(),
            {"task": "zero_shot", "prompts": PROMPTS},
            tolerance=2e-4,
        )
        for family, make in (("clip", made("clip")), ("siglip", siglip))
    },
}


def published(case: Case, path: Path) -> Found:
    """Return what the pipeline publishes of the rows, without Ray."""
    is_image, is_pair = case.rows is not TEXTS and case.rows is not PAIRS, case.rows is PAIRS
    source: dict[str, Any] = {"uri": "in", "format": "images" if is_image else "jsonl"}
    if not is_image:
        source |= {"text_column": "text", **({"text_pair_column": "other"} if is_pair else {})}
    job = job_of({"path": str(path), **case.model}, source)
    spec = resolve_model(job)
    num_rows = len(case.rows)
    if is_image:
        columns = {"image": pa.array(IMAGES, pa.large_binary())}
    else:
        texts = [*zip(*case.rows, strict=True)] if is_pair else [case.rows]
        names = (TEXT, TEXT_PAIR)
        columns = {
            name: pa.array(text, pa.large_string())
            for name, text in zip(names, texts, strict=False)
        }
    spec = spec.fitted(pa.schema([pa.field(name, each.type) for name, each in columns.items()]))
    rows = pa.table(
        {
            "row_id": [str(row) for row in range(num_rows)],
            "uri": [""] * num_rows,
            **columns,
            **failure_columns([None] * num_rows),
        }
    )
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))
    config = PredictorConfig(spec, 2, 0, 1, pa.schema([]), batch_tokens=128)
    table = TorchEngine(config).predict(prepared, {})
    assert table.column("error").null_count == num_rows, table.column("message")
    return [case.columns(row) for row in table.to_pylist()]


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_librarys_own_pipeline(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case = CASES[name]
    path = case.make(tmp_path / "model")
    expected, found = case.library(path, case.rows), published(case, path)
    assert len(found) == len(expected) == len(case.rows)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, dict):
            assert ours == pytest.approx(theirs, abs=case.tolerance)
        elif theirs and isinstance(theirs[0], tuple):
            assert [each[:3] for each in ours] == [each[:3] for each in theirs]
            np.testing.assert_allclose(
                [each[3] for each in ours], [each[3] for each in theirs], atol=case.tolerance
            )
        else:
            np.testing.assert_allclose(ours, theirs, atol=case.tolerance)
