"""Jobs of task `choices` over small language models, and their scores without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.inference.engines import open_engine
from pipeline.job.model import Model
from pipeline.job.transform import Text
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import BatchLimits, Limits
from support.runs.jobs import job_over

PROMPT = "Review: {text}\nSentiment:"
CHOICES = {"good": "positive", "bad": "negative", "neither": "not at all good or bad"}
MESSAGES = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Is it good or bad? {text}"},
]
LIMITS = BatchLimits(64, 256)
TEXTS = (
    "",
    "a good film",
    "the cat sat on the mat and the dog did not like it",
    "\N{GRINNING FACE} na\u00efve",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    " leading and trailing \n",
    "{{ text }} {text} {% for x in y %}",
)


def choosing(
    path: Path, text: Text | None = None, input_name: str = "text", **model: Any
) -> ModelSpec:
    """Return the model of a job; PROMPT and CHOICES unless it says others."""
    fields = {"path": str(path), "task": "choices", "choices": CHOICES, **model}
    if "messages" not in fields:
        fields.setdefault("prompt", PROMPT)
    fields["messages"] = tuple(fields.get("messages", ()))
    return resolve_model(job_over(input_name, Model(**fields), text=text or Text()))


def prepared(spec: ModelSpec, texts: Sequence[str]) -> pa.Table:
    """Return the prompts of texts, tokenised."""
    ids = [str(number) for number in range(len(texts))]
    column = pa.array([text.encode() for text in texts], pa.large_binary()).view(pa.large_string())
    failures = failure_columns([None] * len(texts))
    rows = pa.table({"row_id": ids, "uri": ids, TEXT: column, **failures})
    return spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))


def predicted(
    spec: ModelSpec, rows: pa.Table, limits: BatchLimits = LIMITS
) -> list[dict[str, Any]]:
    """Predict prepared rows as a slice."""
    config = PredictorConfig(spec, limits.rows, 0.0, 1, pa.schema([]), batch_tokens=limits.tokens)
    return open_engine(config).predict(rows, {}).to_pylist()


def scores_of(row: dict[str, Any]) -> list[float]:
    """Return the scores of a row in the order of CHOICES."""
    score_by_label = {entry["label"]: entry["score"] for entry in row["top_k"]}
    return [score_by_label[label] for label in CHOICES]
