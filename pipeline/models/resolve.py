"""Resolve a job's model section to a `ModelSpec`, on the driver.

No weights are loaded, and torch is imported only for a torchvision name that this node has not
cached.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import JobError
from pipeline.core.registry import INPUTS, get
from pipeline.job.text import Text
from pipeline.models.allowed_imports import (
    check_arguments,
    import_callable,
    require_allowed,
    source_digest,
)
from pipeline.models.directories.opening import directory_module, library_digest, open_facts
from pipeline.models.spec import ENTRY_POINT_GROUP, Kind, ModelCard, ModelSpec, entry_point_card
from pipeline.models.tasks import task_class
from pipeline.models.tasks.base import OutputSpec, TaskSpec
from pipeline.models.text_choice import choose_text
from pipeline.models.torchvision_catalog import torchvision_facts, torchvision_module
from pipeline.models.unsupported import describe_name
from pipeline.models.weights import weights_digest
from pipeline.models.weights_file import WEIGHT_SUFFIXES, check_suffix
from pipeline.preprocessing.model_input import Input, InputSettings
from pipeline.preprocessing.text_settings import TextSettings
from pipeline.preprocessing.transform import TransformSpec
from pipeline.storage.single_file import read_file

if TYPE_CHECKING:
    from pipeline.job.model import Model
    from pipeline.job.transform import Transform

_OWN = "model.factory, a function of your own that returns a module (examples/custom_model)"
_OF_PAIRS = "score"
"""What a directory that serves it is asked for if rows are pairs of texts."""
_MISFITS = {
    "text": "takes texts: name their column with source.text_column",
    "image": "takes images: name them with source.image_column or uri_column, or read image files",
    "features": "takes numbers: name their columns with source.features",
}
"""What a model directory takes, if that is not what the job's rows are."""
_FAMILIES = {
    "detection": (
        "is a detector, and detection is not supported directly. To run it: "
        f"{_OWN} with boxes, scores and classes padded to a fixed number, task raw, model.outputs "
        "with the three shapes, all of transform, and model.postprocess (jobs/README.md, "
        "Postprocess)"
    ),
    "video": f"takes clips, and only images are read. To run it: {_OWN} that takes an image",
    "optical_flow": f"takes pairs of images. To run it: {_OWN} that takes one image",
    "segmentation": (
        "gives a map for each image: write task raw, model.outputs with name out and its shape "
        "([classes, size_px, size_px]), and all of transform"
    ),
}
"""Model families of torchvision that are not classifiers, and how to run them."""


def resolve_model(
    model: Model,
    transform: Transform,
    text: Text | None = None,
    *,
    allow_import: Sequence[str] = (),
    input_name: str = "image",
    has_pairs: bool = False,
) -> ModelSpec:
    """Find the model, its transform, labels and weights digest, without building it.

    Args:
        model: The job's model section.
        transform: The job's transform section; its fields win over the model's own.
        text: The job's text section; None: nothing is set. Its fields win likewise.
        allow_import: Prefixes of modules that `factory` may name, beside those of the
            environment variable PIPELINE_ALLOW_IMPORT.
        input_name: The registered name of the input.
        has_pairs: Whether rows are pairs of texts.

    Raises:
        JobError: The model is unknown or not allowed, its weights or labels cannot be used, or
            the transform is incomplete.
    """
    kind, card, code = _card(model, allow_import, input_name, has_pairs=has_pairs)
    weights_uri, chosen, task = _all_of(
        lambda: _weights_uri(kind, card, model),
        lambda: _choose_input(card, model, transform, text or Text(), input_name),
        lambda: _task(model, card, allow_import),
    )
    weights_sha256 = (
        card.directory.sha256
        if card.directory is not None
        else weights_digest(weights_uri, model.weights_sha256, model.storage_options)
    )
    return ModelSpec(
        name=card.name,
        kind=kind,
        code_sha256=code,
        weights_uri=weights_uri,
        weights_sha256=weights_sha256,
        input=chosen,
        task=task,
        precision=model.precision,
        runtime=model.runtime,
        layer=model.layer,
        storage_options=model.storage_options,
        weights_key=model.weights_key,
        args=model.args,
        directory=card.directory,
        pooling=model.pooling,
        said=card.facts.said if card.facts else (),
    )


def _card(
    model: Model, allow_import: Sequence[str], input_name: str, *, has_pairs: bool
) -> tuple[Kind, ModelCard, str]:
    if model.path is not None:
        return _directory_card(model, model.path, input_name, has_pairs=has_pairs)
    if model.factory is not None:
        return _factory_card(model.factory, model.args, allow_import)
    return _named_card(model.name or "", model)


def _directory_card(
    model: Model, path: str, input_name: str, *, has_pairs: bool
) -> tuple[Kind, ModelCard, str]:
    directory, facts = open_facts(path, model.storage_options, input_name, model.pooling)
    if has_pairs and _OF_PAIRS in facts.tasks:  # of one output, which may be a number as well
        others = tuple(name for name in facts.tasks if name != _OF_PAIRS)
        facts = replace(facts, tasks=(_OF_PAIRS, *others))
    if facts.input != input_name:
        raise JobError(f"model.path = {path}: {_MISFITS[facts.input]}")
    if model.task is None:
        problems = [*model.problems_of(facts.tasks[0])]
        if problems:
            raise JobError(f"model: {'; '.join(problems)}")
    card = ModelCard(
        name=facts.architecture,
        build=functools.partial(directory_module, directory, input_name, model.pooling),
        transform=facts.transform,
        labels=facts.labels,
        facts=facts,
        directory=directory,
    )
    return "directory", card, library_digest(facts)


def _all_of(*steps: Callable[[], Any]) -> list[Any]:
    """Return the results of all steps.

    Raises:
        JobError: Some steps raised JobError; joins their messages.
    """
    found, problems = [], []
    for step in steps:
        try:
            found.append(step())
        except JobError as error:
            problems.append(error)
    if len(problems) > 1:
        raise JobError("; ".join(map(str, problems)))
    if problems:
        raise problems[0]
    return found


def _weights_uri(kind: Kind, card: ModelCard, model: Model) -> str | None:
    uri = model.weights or card.weights_path
    if uri is None and kind == "torchvision":
        raise JobError(
            f"model.weights: {card.name} needs the URI of a state dict "
            f"({', '.join(WEIGHT_SUFFIXES)}); nothing is downloaded silently"
        )
    if uri is not None:
        check_suffix(uri)
        if model.weights_key is not None and uri.endswith(".safetensors"):
            raise JobError(
                "model.weights_key: safetensors hold names and tensors only; leave it out"
            )
    return uri


def _named_card(name: str, model: Model) -> tuple[Kind, ModelCard, str]:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return "entry_point", entry_point_card(name), source_digest(entry.module)
    facts = torchvision_facts(name)
    if facts is None:
        elsewhere = describe_name(name)
        if elsewhere is not None:
            raise JobError(f"model.name = {name!r}: {elsewhere}")
        ours = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
        raise JobError(
            f"model.name = {name!r}: neither an installed model ({', '.join(ours) or 'none'}) "
            "nor a torchvision one"
        )
    _refuse_family(name, facts["family"], model)
    transform = facts["transform"] and TransformSpec.from_dict(facts["transform"])
    card = ModelCard(
        name=name,
        build=functools.partial(torchvision_module, name),
        transform=transform,
        labels=tuple(facts["labels"]) if model.labels is None else None,
    )
    code = hashlib.sha256(f"torchvision {version('torchvision')}".encode()).hexdigest()
    return "torchvision", card, code


def _refuse_family(name: str, family: str, model: Model) -> None:
    """Refuse a model whose inputs or outputs fit no task; the message has all problems."""
    is_fine = family == "segmentation" and task_class(model.known_task or "").takes_any_shape
    if family in _FAMILIES and not is_fine and model.layer is None:
        raise JobError(f"model.name = {name!r}: {_FAMILIES[family]}")


def _factory_card(
    factory: str, args: Mapping[str, Any], allow_import: Sequence[str]
) -> tuple[Kind, ModelCard, str]:
    module_name = require_allowed("model.factory", factory, allow_import)
    build = import_callable("model.factory", factory)
    check_arguments("model.factory", factory, build, args)
    card = ModelCard(name=factory, build=functools.partial(build, **args))
    return "factory", card, source_digest(module_name)


def _task_name(model: Model, card: ModelCard) -> str:
    """Return the job's task, otherwise what the model directory serves first."""
    return model.known_task or (card.facts.tasks[0] if card.facts else "classify")


def _task(model: Model, card: ModelCard, allow_import: Sequence[str]) -> TaskSpec:
    name, facts = _task_name(model, card), card.facts
    kind = task_class(name)
    if facts is not None and name not in facts.tasks:
        raise JobError(
            f"model.task = {name!r}: {facts.architecture} of model.path serves "
            f"{', '.join(facts.tasks)}"
        )
    labels = kind.own_labels(model)
    if kind.needs_labels:
        found = card.labels if model.labels is None else _read_labels(model, model.labels)
        if not found:
            raise JobError(
                f"model.labels: {card.name} brings no class names; give a list or a file"
            )
        labels = tuple(found)
    code = ""
    if model.postprocess is not None:
        code = source_digest(require_allowed("model.postprocess", model.postprocess, allow_import))
    return TaskSpec(
        kind=name,
        labels=labels,
        top_k=min(model.top_k, len(labels)) if labels else 0,
        embedding_dim=model.embedding_dim or (facts and facts.embedding_dim) or 0,
        l2_norm=model.l2_norm,
        outputs=tuple(OutputSpec(output.name, output.shape) for output in model.outputs),
        targets=model.targets,
        postprocess=model.postprocess,
        postprocess_sha256=code,
        min_score=model.min_score,
        embedding_type=model.embedding_type,
        activation=str(facts.settings.get("activation", "identity")) if facts else "identity",
        aggregation=model.aggregation,
        prompts=_texts(model.prompts),
        postprocess_args=model.postprocess_args,
    )


def _texts(prompts: tuple[str, ...] | dict[str, str]) -> tuple[str, ...]:
    return tuple(prompts.values()) if isinstance(prompts, dict) else prompts


def _choose_input(
    card: ModelCard, model: Model, transform: Transform, text: Text, name: str
) -> Input:
    kind: type[Input] = get(INPUTS, name)
    for section, given in (("transform", transform), ("text", text)):
        if kind.takes != section and given.model_fields_set:
            field = sorted(given.model_fields_set)[0]
            raise JobError(f"{section}.{field}: has no effect on input {name!r}; leave it out")
    if kind.takes == "transform":
        problem = str(card.facts.settings.get("transform_problem", "")) if card.facts else ""
        merged = _merge_transform(card.name, card.transform, transform, problem)
        return kind.of(InputSettings(merged))
    if kind.takes == "text":
        return kind.of(InputSettings(text=_text(card, model, text)))
    return kind.of(InputSettings())


def _text(card: ModelCard, model: Model, wanted: Text) -> TextSettings:
    return choose_text(
        card.name,
        wanted,
        card.facts.text if card.facts else None,
        card.directory.uri if card.directory else None,
        model.storage_options,
        has_offsets=task_class(_task_name(model, card)).is_per_token,
        # A model with labels of its own reads prompts as hypotheses behind the text.
        hypotheses_of=_texts(model.prompts) if card.facts and card.facts.labels else (),
    )


def _merge_transform(
    name: str, default: TransformSpec | None, wanted: Transform, problem: str = ""
) -> TransformSpec:
    base: dict[str, Any] = default.to_dict() if default else {}
    base.setdefault("shrink_on_load", False)
    base.setdefault("jpeg_decoder", "cpu")
    given = {key: value for key, value in wanted.model_dump().items() if value is not None}
    if "size_px" in given and "resize_px" not in given and default:
        # Keep the model's ratio of resize to crop.
        given["resize_px"] = round(given["size_px"] * base["resize_px"] / base["size_px"])
    merged = {**base, **given}
    missing = [key for key in type(wanted).model_fields if key not in merged]
    if missing:
        why = f" ({problem})" if problem else ""
        raise JobError(f"transform: {name} brings no transform{why}; give {', '.join(missing)}")
    try:
        return TransformSpec.from_dict(merged)
    except ValueError as error:
        raise JobError(f"transform: {error}") from None


def _read_labels(model: Model, labels: str | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(labels, str):
        return labels
    data = read_file(labels, model.storage_options, "model.labels")
    try:
        text = data.decode("utf-8-sig")
        names = json.loads(text) if labels.endswith(".json") else None
    except ValueError as error:
        raise JobError(f"model.labels = {labels}: cannot be read: {error}") from None
    if labels.endswith(".json"):
        if not (isinstance(names, list) and all(isinstance(item, str) for item in names)):
            raise JobError(f"model.labels = {labels}: expected a JSON list of strings")
        return tuple(names)
    return tuple(line.strip() for line in text.splitlines() if line.strip())
