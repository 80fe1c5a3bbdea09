"""Models of a job, resolved or refused, and files of weights for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import pytest
import torch

from pipeline.core.errors import JobError
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, load_module
from support.runs.jobs import job_of

LABELS = models.LABELS


def resolve(
    allow: tuple[str, ...] = ("models",), transform: dict[str, Any] | None = None, **model: Any
) -> ModelSpec:
    """Resolve `models:colours`, or what the fields say."""
    fields: dict[str, Any] = {"labels": LABELS, **model}
    if "name" not in fields:
        fields.setdefault("factory", "models:colours")
    if transform is None and "factory" in fields:
        transform = models.TRANSFORM
    model = {key: value for key, value in fields.items() if value is not None}
    return resolve_model(job_of(model, transform=transform or {}), allow)


def refusal(**model: Any) -> str:
    """The error of resolving or loading the model, whichever refuses it."""
    with pytest.raises(JobError) as caught:
        load_module(resolve(**model))
    return str(caught.value)


def saved(path: Path, state: object) -> str:
    torch.save(state, path)
    return str(path)


def colours_state() -> dict[str, torch.Tensor]:
    """Other weights than the factory's own."""
    return {"head.weight": torch.full((5, 3), 2.0), "head.bias": torch.arange(5.0)}
