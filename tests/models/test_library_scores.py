"""Scores of directories of texts are those of the library's own pipeline, for each family and task.

`CASES` has a row for each: what is made (random weights), which task reads it, what the library's
pipeline gives, and how far scores may be apart (absolute).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.models.library_cases import (
    EVERY,
    MULTI,
    NAMES,
    PROMPTS,
    ZERO_SHOT,
    Case,
    Results,
    best,
    embedding,
    entities,
    labels,
    made,
    of_encoder,
    of_pipeline,
    of_tokens,
    require_scores_of_the_library,
)
from support.models.snapshots import TEXT_FAMILIES, make_snapshot
from support.runs.selection import quick_cases

from pipeline.models.directories.text.sentence_transformers import MODES
from pipeline.models.directories.text.zero_shot import SCALE

_NLI = {0: "contradiction", 1: "neutral", 2: "entailment"}
NLI = {"id2label": _NLI, "label2id": {label: number for number, label in _NLI.items()}}


def of_nli(path: Path, rows: Any) -> Results:
    from transformers import pipeline

    classify = pipeline("zero-shot-classification", model=str(path), device="cpu")
    answers = classify(list(rows), list(PROMPTS), hypothesis_template="{}")
    return [dict(zip(answer["labels"], answer["scores"], strict=True)) for answer in answers]


def of_numbers(path: Path, rows: Any) -> Results:
    """A regression: the pipeline applies no function."""
    return [[*scores.values()] for scores in ALL_TEXT(path, rows)]


def of_cross_encoder(path: Path, rows: Any) -> Results:
    from sentence_transformers import CrossEncoder

    pairs = [list(pair) for pair in rows]
    return [[score] for score in CrossEncoder(str(path), device="cpu").predict(pairs).tolist()]


def of_similarities(path: Path, rows: Any) -> Results:
    from sentence_transformers import SentenceTransformer, util

    model = SentenceTransformer(str(path), device="cpu")
    cosines = util.cos_sim(model.encode(list(rows)), model.encode(list(PROMPTS)))
    scores = (SCALE * cosines).softmax(1).tolist()
    return [dict(zip(PROMPTS, row, strict=True)) for row in scores]


def of_towers(family: str) -> Callable[[Path, Any], Results]:
    """The vectors of texts of a model of two towers, which SigLIP makes of texts of one length."""

    def give(path: Path, rows: Any) -> Results:
        import torch
        from transformers import AutoModel, AutoTokenizer

        is_full = family == "siglip"
        given = AutoTokenizer.from_pretrained(path)(
            list(rows), padding="max_length" if is_full else True, truncation=True,
            max_length=16, return_tensors="pt",
        )  # fmt: skip
        names = ("input_ids",) if is_full else ("input_ids", "attention_mask")
        with torch.inference_mode():
            model = AutoModel.from_pretrained(path)
            features = model.get_text_features(**{name: given[name] for name in names})
        return features.pooler_output.tolist()

    return give


def saved_cross_encoder(folder: Path) -> Path:
    from sentence_transformers import CrossEncoder

    path = make_snapshot(folder / "made", "bert", "sequence", num_labels=1)
    CrossEncoder(str(path), device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


def saved_encoder(folder: Path) -> Path:
    """As the installed sentence-transformers writes it."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    parts = [
        modules.Transformer(str(make_snapshot(folder / "made", "bert"))),
        modules.Pooling(32, pooling_mode="weightedmean"),
        modules.Dense(32, 16),
        modules.Normalize(),
    ]
    SentenceTransformer(modules=parts, device="cpu").save_pretrained(str(folder / "saved"))
    return folder / "saved"


ALL_TEXT = of_pipeline("text-classification", top_k=None)
FAMILIES = (*TEXT_FAMILIES,)
PROMPTED = {"prompts": {"query": "query: ", "other": ""}, "default_prompt": "query"}
CASES = {
    **{
        f"{family} classify": Case(made(family, "sequence", id2label=NAMES), ALL_TEXT, best)
        for family in FAMILIES
    },
    "bert multilabel": Case(made("bert", "sequence", **MULTI), ALL_TEXT, labels, EVERY),
    "bert regress": Case(
        made("bert", "sequence", num_labels=1, problem_type="regression"),
        of_numbers,
        lambda row: [row["value"]],
        {"task": "regress"},
        tolerance=1e-4,
    ),
    **{
        f"{name} score": Case(make, of_cross_encoder, lambda row: [row["score"]], rows="pair")
        for name, make in (
            *((family, made(family, "sequence", num_labels=1)) for family in ("bert", "roberta")),
            ("saved", saved_cross_encoder),
        )
    },
    **{
        f"{family} tokens": Case(
            made(family, "token", num_labels=5), of_tokens, entities, {"aggregation": "simple"}
        )
        for family in FAMILIES
    },
    **{
        f"{family} zero_shot": Case(made(family, "sequence", **NLI), of_nli, best, ZERO_SHOT)
        for family in ("bert", "roberta", "distilbert", "deberta-v2", "modernbert")
    },
    "bert encoder zero_shot": Case(made("bert", pooling="cls"), of_similarities, best, ZERO_SHOT),
    **{
        f"{family} embed": Case(
            made(family, pooling="mean", normalize=True), of_encoder, embedding
        )
        for family in FAMILIES
    },
    **{
        f"bert embed {mode}, {'with' if is_pooled else 'without'} prompt": Case(
            made("bert", pooling=mode, dense=8, include_prompt=is_pooled, max_seq_length=12,
                 **PROMPTED),
            of_encoder,
            embedding,
        )
        for mode in (*MODES, ("cls", "mean", "lasttoken"))
        for is_pooled in (True, False)
    },
    "roberta embed without pooling": Case(made("roberta", "masked"), of_encoder, embedding),
    "saved embed": Case(saved_encoder, of_encoder, embedding),
    **{
        f"{family} embed": Case(made(family), of_towers(family), embedding, tolerance=1e-4)
        for family in ("clip", "siglip")
    },
}  # fmt: skip
QUICK = (
    *(name for name in CASES if name.startswith("bert ") and "with prompt" not in name),
    *(f"{family} classify" for family in FAMILIES),
    *("bert embed mean, with prompt", "roberta tokens", "roberta embed without pooling"),
    *("saved score", "saved embed", "clip embed", "siglip embed", "bert classify by openvino"),
)
"""Each task and pooling of one family, one task of each family, and what libraries save."""
CASES |= {
    f"{name} by {runtime}": CASES[name]._replace(
        model={**CASES[name].model, "runtime": runtime}, tolerance=1e-3
    )
    for name in ("bert classify", "modernbert embed", "bert encoder zero_shot", "bert zero_shot")
    for runtime in ("onnxruntime", "openvino")
}


@pytest.mark.filterwarnings("ignore")  # of the exporters of runtimes
@pytest.mark.parametrize(
    "name", quick_cases(((name,) for name in CASES), lambda name: name in QUICK)
)
def test_scores_are_those_of_the_librarys_own_pipeline(name: str, tmp_path: Path):
    require_scores_of_the_library(CASES[name], tmp_path / "model")
