"""Scores of labels: decide whether outputs are logits or probabilities, and make scores of them.

Outputs are logits, of which softmax or sigmoid make scores, or they are probabilities already and
stay what they are. The job, the library or the graph of a file says which (`TaskSpec.scores`).
Where none of them does (`OPEN`), they are logits, and first rows that look like probabilities end
the run: `inference.outputs_check`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model
    from pipeline.models.resolving.named_model import ResolvedModel
    from pipeline.models.tasks.base import Task, TaskSpec

OPEN, LOGITS, PROBABILITIES, SOFTMAX, SIGMOID = (
    *("open", "logits", "probabilities"),
    *("softmax", "sigmoid"),
)
OFF = "off"
"""Result beside the scores: by how much a row's outputs miss being probabilities, that is how far
one lies beyond [0, 1] or, where they must add up to 1, their sum off 1."""

TOLERANCE, INT8_TOLERANCE = 5e-3, 5e-2
"""Largest error of probabilities: bfloat16 has 8 bits of precision, int8 8 bits in all."""
_EXACT = 1e-4
_ENOUGH_ROWS, _ENOUGH_VALUES = 4, 24
"""So many logits are not probabilities by chance: rows that add up to 1, values within [0, 1]."""
_FAR = 1e9


def choose_scores(model: Model, card: ResolvedModel, task: type[Task]) -> str:
    """Return `TaskSpec.scores` of a job's model.

    Raises:
        JobError: What the job says has no meaning for the model.
    """
    if not task.scores_of_logits:
        return LOGITS
    facts = card.facts
    usual = (facts and facts.scores) or task.scores_of_logits
    is_library = card.origin == "torchvision" or (facts and facts.format_name != "onnx")
    gives_logits = is_library and model.layer is None
    if model.scores == PROBABILITIES and gives_logits:
        raise JobError(f"model.scores = {model.scores!r}: {card.name} gives logits; leave it out")
    if model.scores == SIGMOID and model.prompts and facts and facts.input == "text":
        raise JobError(
            f"model.scores = {model.scores!r}: a text's scores weigh the prompts against each "
            "other: softmax; leave it out"
        )
    if model.scores is not None or gives_logits:
        wanted = usual if model.scores in (None, LOGITS) else model.scores
        return LOGITS if wanted == task.scores_of_logits else wanted
    ends_in = facts.ends_in if facts and model.layer is None else None
    is_probable = ends_in in (PROBABILITIES, SOFTMAX, task.scores_of_logits)
    return PROBABILITIES if is_probable else OPEN


def scores_of(
    outputs: torch.Tensor, scores: str, usual: str
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the scores of a batch, and the result beside them that says what the outputs are.

    Args:
        outputs: float32 (B, K).

    Returns:
        float32 (B, K), not finite in rows whose outputs are not; `OFF`, (B,), unless the outputs
        are known to be logits.
    """
    import torch

    beside = {}
    if scores in (OPEN, PROBABILITIES):
        beside = {OFF: _off_by(outputs, adds_up=usual == SOFTMAX)}
    if scores == PROBABILITIES:
        is_finite = outputs.isfinite().all(dim=1, keepdim=True)
        return torch.where(is_finite, outputs, torch.nan), beside
    if (scores if scores in (SOFTMAX, SIGMOID) else usual) == SOFTMAX:
        return torch.softmax(outputs, dim=1), beside
    # The sigmoid of infinity would be 1, and the row would pass for a good one.
    return torch.where(outputs.isfinite(), torch.sigmoid(outputs), torch.nan), beside


def _off_by(outputs: torch.Tensor, *, adds_up: bool) -> torch.Tensor:
    """Return by how much each row of outputs (B, K) misses being probabilities: float32 (B,)."""
    import torch

    beyond = torch.maximum(-outputs.amin(dim=1), outputs.amax(dim=1) - 1).clamp_min(0)
    distances = torch.maximum(beyond, (outputs.sum(dim=1) - 1).abs()) if adds_up else beyond
    return distances.nan_to_num(nan=_FAR, posinf=_FAR)


def are_probabilities(off: Any, num_labels: int, *, adds_up: bool) -> bool | None:
    """Tell whether outputs of some rows are probabilities; None: too few rows to tell.

    Args:
        off: float (N,), the rows' results `OFF`, N at least 1.
        num_labels: K.
        adds_up: Whether a row of probabilities adds up to 1.
    """
    if (off > TOLERANCE).any():
        return False
    if adds_up:
        is_enough = len(off) >= _ENOUGH_ROWS or bool((off <= _EXACT).all())
    else:
        is_enough = len(off) * num_labels >= _ENOUGH_VALUES
    return True if is_enough else None


def describe_scores(spec: TaskSpec, name: str) -> str | None:
    """Describe the outputs of a model in one line; None if they are plainly logits."""
    if spec.scores == PROBABILITIES:
        return f"{clean_message(name)} gives probabilities: taken as they are"
    if spec.scores == SIGMOID:
        return f"{clean_message(name)} gives logits: scores are their sigmoids"
    return None
