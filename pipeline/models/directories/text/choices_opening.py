"""Make the module that scores answers for a task, and try whether answers may share a prompt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pipeline.models.directories.facts import CAUSAL
from pipeline.models.directories.text.cached_model import refused_for
from pipeline.models.directories.text.choices import CausalChoices, Choices, TargetChoices
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.model_input import Input
from pipeline.preprocessing.texts.prompts import prompt_tokenizer

_CHECKED_TOKENS, _CHECKED_ROWS, _CHECKED_ANSWERS, _TOLERANCE = (7, 4, 6, 5, 3), 2, 3, 1e-3
_Batch = tuple[torch.Tensor, ...]


def with_choices(head: str, model: nn.Module, task: TaskSpec, seen: Input) -> Choices:
    """Return the module that scores the answers of a task.

    Args:
        head: As `LibraryClass.head`, of a model that writes.
        model: Of the library, with this head.
        task: Its prompts are the answers.
        seen: What the model sees of a row.

    Raises:
        JobError: Keys and values of the model cannot be shared.
    """
    assert seen.text is not None, "the job's rows are texts"
    tokenizer = prompt_tokenizer(seen.text)
    module: CausalChoices | TargetChoices
    if head == CAUSAL:
        module = CausalChoices(model, tokenizer.answers(task.prompts))
    else:
        module = TargetChoices(model, tokenizer.targets(task.prompts))
    _require_shares(module, *_prompts(model))
    if task.prior_corrected:
        [ids] = tokenizer.prompts([""])
        prompt = torch.tensor([ids])
        with torch.no_grad():
            module.prior = tuple(module(prompt, torch.ones_like(prompt))[0].tolist())
    if isinstance(module, CausalChoices):
        module.shared = tuple(tokenizer.shared())
    return module


def _prompts(model: nn.Module) -> tuple[list[_Batch], list[torch.Tensor]]:
    """Return batches of made-up prompts, and the tokens (T,) of the first of each."""
    size = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    width = max(_CHECKED_TOKENS)
    ids = (torch.arange(len(_CHECKED_TOKENS) * width) * 31 % size).view(-1, width)
    lengths = torch.tensor(_CHECKED_TOKENS)[:, None]
    mask = (torch.arange(width) < lengths).long()
    some = slice(_CHECKED_ROWS)
    rows = [ids[row, : _CHECKED_TOKENS[row]] for row in range(_CHECKED_ROWS)]
    # Of a few lengths and of many, which are read otherwise.
    return [(ids[some], mask[some]), (ids, mask)], rows


@torch.no_grad()
def _require_shares(
    module: Choices, batches: Sequence[_Batch], rows: Sequence[torch.Tensor]
) -> None:
    """Refuse a model whose likelihoods change where keys and values are shared and padded.

    Args:
        module: It is tried.
        batches: Each is what the module takes of some rows.
        rows: What `plain` takes of the first rows of each.
    """
    name = type(module.model).__name__
    with refused_for("choices", name, "score answers that share a prompt"):
        scores = torch.stack([module(*batch)[: len(rows)] for batch in batches])
        for row, prompt in enumerate(rows):
            for number, answer in enumerate(module.answers()[:_CHECKED_ANSWERS]):
                expected = module.plain(prompt, answer)
                off = float((scores[:, row, number] - expected).abs().max())
                if not off <= _TOLERANCE * max(1.0, abs(float(expected))):
                    raise ValueError(f"log-likelihoods are off by {off:.2g}")
