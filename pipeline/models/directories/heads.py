"""What the outputs of a class with a head mean: tasks, labels, and the activation of scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.core.errors import JobError
from pipeline.models.directories.files import CONFIG, preview, read_value

_PROBLEMS = {
    "multi_label_classification": ("multilabel", "classify"),
    "regression": ("regress", "score"),
    "single_label_classification": ("classify", "multilabel"),
}
_OLD_ACTIVATION = "sbert_ce_default_activation_function"
_ENTAILS = "entail"


def labels_of(config: Any, values: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of the outputs, as the config has them.

    Raises:
        JobError: id2label does not name each output once.
    """
    named = read_value(values, "id2label", CONFIG, dict[str, str])
    if named is None:
        return tuple(f"LABEL_{index}" for index in range(config.num_labels))
    wanted = [str(index) for index in range(len(named))]
    if sorted(named) != sorted(wanted):
        raise JobError(
            f"model.path: {CONFIG}: id2label must name the outputs 0 to {len(named) - 1}, it has "
            f"{preview(sorted(named))}"
        )
    return tuple(named[index] for index in wanted)


def tasks_of(
    head: str, labels: tuple[str, ...], values: Mapping[str, Any], *, scores_pairs: bool
) -> tuple[str, ...]:
    """Return the tasks that the outputs of a head serve, the default first.

    Args:
        head: `sequence`, `token`, `image` or `audio`.
        scores_pairs: The directory says that it is a cross-encoder's.

    Raises:
        JobError: problem_type is unknown.
    """
    if head == "token":
        return ("tokens",)
    problem = read_value(values, "problem_type", CONFIG, str)
    if problem is not None and problem not in _PROBLEMS:
        raise JobError(
            f"model.path: {CONFIG}: problem_type is {preview(problem)}, expected one of "
            f"{', '.join(_PROBLEMS)}"
        )
    if len(labels) == 1 and problem != "multi_label_classification":
        if head in ("image", "audio"):
            return ("regress",)
        return ("score", "regress") if scores_pairs else ("regress", "score")
    if problem == "regression":
        return ("regress",)
    tasks = _PROBLEMS[problem or "single_label_classification"]
    entails = entailment_id(labels) is not None
    return (*tasks, "zero_shot") if head == "sequence" and entails else tasks


def entailment_id(labels: tuple[str, ...]) -> int | None:
    """Return which output of an NLI model says that a text entails another; None: none does."""
    starts = (id_ for id_, name in enumerate(labels) if name.lower().startswith(_ENTAILS))
    return next(starts, None)


def score_activation(values: Mapping[str, Any], num_labels: int) -> tuple[str, bool]:
    """Return `identity` or `sigmoid` for the score of a pair, and whether the config names it.

    Raises:
        JobError: It names another function.
    """
    ours = values.get("sentence_transformers")
    named = ours.get("activation_fn") if isinstance(ours, dict) else values.get(_OLD_ACTIVATION)
    activation = activation_of(named, CONFIG)
    return activation or ("sigmoid" if num_labels == 1 else "identity"), bool(activation)


def activation_of(named: Any, where: str) -> str:
    """Return `identity` or `sigmoid` for a class of torch; '' if none is named.

    Raises:
        JobError: It is another one; nothing is imported by name.
    """
    if not isinstance(named, str):
        return ""
    name = named.rpartition(".")[2].lower()
    if not named.startswith("torch.nn.") or name not in ("identity", "sigmoid"):
        raise JobError(
            f"model.path: {where}: activation_fn is {preview(named)}, expected Sigmoid or Identity "
            "of torch.nn"
        )
    return name
