"""Find the model that a job names: a directory, a factory, an entry point, one of torchvision."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.core.registry import INPUTS, TASKS, built_in, get, load
from pipeline.core.user_code import (
    check_arguments,
    import_callable,
    require_allowed,
    source_digest,
)
from pipeline.models.directories.facts import RAW, DirectoryFacts, ImageContract, OnnxFile
from pipeline.models.directories.opening import library_digest, open_facts
from pipeline.models.directories.snapshot import ModelDirectory
from pipeline.models.outputs import in_words
from pipeline.models.spec import ENTRY_POINT_GROUP, Origin, entry_point_card
from pipeline.models.tasks import task_class
from pipeline.models.torchvision_catalog import torchvision_facts

if TYPE_CHECKING:
    from pipeline.job.model import Model

_FACTORY = "model.factory, a function of your own that returns a module (examples/custom_model)"
_OF_GRIDS = ("raw", "detect")
"""Tasks of an .onnx file over images with one output (B, N, M), as YOLO of ultralytics has."""
_OF_PAIRS = "score"
"""The default task of a directory that serves it if rows are pairs of texts."""


@dataclass(frozen=True)
class ResolvedModel:
    """The model that a job names, and what it brings by itself."""

    name: str
    origin: Origin
    code_sha256: str
    """Digest of the code that builds the module."""
    transform: Mapping[str, Any] | None = None
    """The fields of a TransformSpec that are known."""
    transform_problem: str = ""
    """Why others are unknown."""
    labels: tuple[str, ...] | None = None
    weights_path: str | None = None
    """Local path of a state dict that ships with the package."""
    facts: DirectoryFacts | None = None
    """The facts of a model directory."""
    directory: ModelDirectory | None = None
    images: ImageContract = field(default_factory=ImageContract)
    notes: tuple[str, ...] = ()
    """Lines for `pipeline plan`: a source and what was read from it."""


def find_card(
    model: Model, allow_import: Sequence[str], input_name: str, *, has_pairs: bool
) -> ResolvedModel:
    """Find the model that the model section names, without building it.

    Args:
        allow_import: Prefixes of modules that `factory` may name, beside the environment's.
        input_name: The registered name of the input.
        has_pairs: Whether rows are pairs of texts.

    Raises:
        JobError: The model is unknown, not allowed, or does not take the job's rows.
    """
    if model.path is not None:
        return _directory_card(model, model.path, input_name, has_pairs=has_pairs)
    if model.factory is not None:
        return _factory_card(model.factory, model.args, allow_import)
    return _named_card(model.name or "", model)


def _directory_card(model: Model, path: str, input_name: str, *, has_pairs: bool) -> ResolvedModel:
    directory, facts = open_facts(
        path, model.storage_options, input_name, model.pooling, model.task
    )
    if has_pairs and _OF_PAIRS in facts.tasks:  # its single output may be a number as well
        others = tuple(name for name in facts.tasks if name != _OF_PAIRS)
        facts = replace(facts, tasks=(_OF_PAIRS, *others))
    if facts.input != input_name:
        advice = get(INPUTS, facts.input).how_to_name
        if facts.columns:
            names = clean_message(", ".join(column.name for column in facts.columns), 400)
            advice = f"takes columns by name: source.features: [{names}]"
        raise JobError(f"model.path = {path}: {advice}")
    if facts.tasks == _OF_GRIDS and not model.postprocess:
        _refuse_grid(model, facts)
    if model.task is None and facts.tasks == (RAW,) and facts.outputs:
        raise JobError(
            f"model.path: {facts.architecture} fits no other task; write task: raw, whose columns "
            f"are its {in_words(facts.outputs)}"
        )
    if model.task is None:
        problems = [*model.problems_of(facts.tasks[0])]
        if problems:
            raise JobError(f"model: {'; '.join(problems)}")
    return ResolvedModel(
        name=facts.architecture,
        origin="directory",
        code_sha256=library_digest(facts),
        transform=facts.transform.to_dict() if facts.transform else None,
        transform_problem=facts.transform_problem,
        labels=facts.labels,
        images=facts.images,
        facts=facts,
        directory=directory,
        notes=facts.notes,
    )


def _refuse_grid(model: Model, facts: DirectoryFacts) -> None:
    """Refuse an .onnx file over images whose only output may be boxes in a layout of its own.

    Raises:
        JobError: The job neither declares the output nor reads boxes out of it.
    """
    if model.task == _OF_GRIDS[1] or (model.task is None and not model.outputs):
        known = facts.module.no_boxes if isinstance(facts.module, OnnxFile) else ""
        raise JobError(
            f"model.path: {facts.notes[1]}; it {known or 'is no boxes as task detect reads them'}: "
            "export the model with outputs boxes and scores, or logits and pred_boxes, or name a "
            "model.postprocess that makes them (examples/detection/yolo_head.py); or take task "
            "'raw' with model.outputs"
        )


def _named_card(name: str, model: Model) -> ResolvedModel:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            brought = entry_point_card(name)
            return ResolvedModel(
                name=brought.name,
                origin="entry_point",
                code_sha256=source_digest("model.name", entry.value),
                transform=brought.transform.to_dict() if brought.transform else None,
                labels=brought.labels,
                weights_path=brought.weights_path,
                images=ImageContract(brought.num_channels),
            )
    facts = torchvision_facts(name)
    if facts is None:
        raise _unknown(name)
    _refuse_family(name, facts["family"], model)
    card = ResolvedModel(
        name=name,
        origin="torchvision",
        code_sha256=hashlib.sha256(f"torchvision {version('torchvision')}".encode()).hexdigest(),
        images=ImageContract(3),
    )
    return with_weights(card, model, None)


def with_weights(card: ResolvedModel, model: Model, sha256: str | None) -> ResolvedModel:
    """Return a model of torchvision with transform and labels of the weights of a digest.

    Other weights than torchvision's have the fields that all published weights share.
    """
    every = (torchvision_facts(card.name) or {}).get("weights")
    if not every:
        return card
    published = [entry for entry in every if (sha256 or "").startswith(entry["sha256"])]
    weights = published or every
    transforms = {entry["name"]: entry["transform"] or {} for entry in weights}
    first, labels = transforms[weights[0]["name"]], weights[0]["labels"]
    common = {
        field: value
        for field, value in first.items()
        if all(transform.get(field) == value for transform in transforms.values())
    }
    differ = (
        f"{field} of {name} is {transform.get(field)}"
        for field in first
        if field not in common
        for name, transform in transforms.items()
    )
    warning = "" if published else "model.weights are none that torchvision publishes"
    return replace(
        card,
        transform=common or None,
        transform_problem=", ".join([warning, *differ]),
        labels=tuple(labels) if model.labels is None else None,
        notes=(
            f"torchvision: transform and labels of {weights[0]['name']}",
            *([f"torchvision: {warning}; give transform if theirs is another"] if warning else []),
        ),
    )


def require_installed(name: str) -> None:
    """Require that a name is that of an installed model.

    Raises:
        JobError: It is not, and says what else it may be.
    """
    if name not in _installed() and torchvision_facts(name) is None:
        raise _unknown(name)


def _installed() -> list[str]:
    return sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))


def _unknown(name: str) -> JobError:
    elsewhere = describe_name(name) or (
        f"no such folder or file, no installed model ({', '.join(_installed()) or 'none'}), and no "
        "torchvision one; `pipeline pull hf://ORG/NAME FOLDER` copies one of a hub"
    )
    return JobError(f"model.name = {clean_message(name)!r:.300}: {elsewhere}")


def describe_name(name: str) -> str | None:
    """Describe a name that is not a model's, and how to run that model; None if unknown."""
    path = Path(name).expanduser()
    try:
        if path.is_dir() or (path.is_file() and path.suffix == ".onnx"):
            what = "folder" if path.is_dir() else "file"
            return f"is a {what}: model directories and .onnx files are named by model.path"
        if path.is_file():
            return f"is a file. Write model.weights: {name} and name its architecture"
    except (OSError, ValueError):
        return None
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        shown_name = clean_message(name)[:200]
        return (
            "no such folder or file, and no installed model; of a model hub nothing is downloaded "
            f"by a run: `pipeline pull hf://{shown_name} FOLDER`, then model.path: FOLDER"
        )
    return None


def _refuse_family(name: str, family: str, model: Model) -> None:
    """Refuse a model of torchvision that is no classifier for a task that does not take it."""
    if not family or model.layer is not None:
        return
    if family in task_class(model.known_task or "").serves:
        return
    able = [other for other in built_in(TASKS) if family in load(TASKS, other).serves]
    advice = f"write task {' or '.join(able)}" if able else f"take {_FACTORY} that takes one image"
    raise JobError(f"model.name = {name!r}: is a model of {family}: {advice}")


def _factory_card(
    factory: str, args: Mapping[str, Any], allow_import: Sequence[str]
) -> ResolvedModel:
    require_allowed("model.factory", factory, allow_import)
    build = import_callable("model.factory", factory)
    check_arguments("model.factory", factory, build, args)
    return ResolvedModel(
        name=factory, origin="factory", code_sha256=source_digest("model.factory", factory)
    )
