"""From a job's model section to what actors need: a plain spec, and later the module itself.

`resolve_model` runs on the driver, reads no weights into a model and imports torch only for a
torchvision name that this node sees for the first time. `load_module` runs in the actor.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points, version
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.agreement import AgreementLimits
from pipeline.errors import JobError, PipelineError
from pipeline.imports import import_callable, require_allowed, source_digest
from pipeline.single_file import read_file
from pipeline.storage import Store
from pipeline.task import OutputSpec, TaskSpec
from pipeline.torchvision_models import torchvision_facts, torchvision_module
from pipeline.transform import TransformSpec
from pipeline.weights import (
    WEIGHT_SUFFIXES,
    check_suffix,
    read_state_dict,
    weights_digest,
)

if TYPE_CHECKING:
    import torch

    from pipeline.job import Model, Transform

ENTRY_POINT_GROUP = "pipeline.models"
INT8 = "int8"
PRECISIONS = {
    "eager": ("fp32", "tf32", "bf16", "fp16"),
    "compile": ("fp32", "tf32", "bf16", "fp16"),
    "onnxruntime": ("fp32", INT8),
    "openvino": ("fp32", "bf16", INT8),
    "mnn": ("fp32",),
}
"""Runtime -> the precisions that it can run a module in."""
GPU_PRECISIONS = ("tf32", "fp16")
CPU_PRECISIONS = (INT8,)

Kind = Literal["entry_point", "torchvision", "factory"]


@dataclass(frozen=True)
class ModelCard:
    """What an entry point of group `pipeline.models` returns; making one must not import torch."""

    name: str
    build: Callable[[], torch.nn.Module]
    """Makes the architecture without weights (or whole, where weights_path is None)."""
    transform: TransformSpec | None = None
    labels: tuple[str, ...] | None = None
    weights_path: str | None = None
    """Local path of a state dict that ships with the package."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything that decides the predictions, plain enough for JSON and for Ray."""

    name: str
    kind: Kind
    code_sha256: str
    """Digest of the source that builds the module, so that changed code never reuses old work."""
    weights_uri: str | None
    weights_sha256: str | None
    transform: TransformSpec | None
    """None where the input is features: nothing is decoded."""
    task: TaskSpec
    precision: str
    runtime: str = "eager"
    layer: str | None = None
    """The submodule whose output is taken; None takes the model's own."""
    artefact_sha256: str | None = None
    """Precision int8: the calibrated model, once there is one. It follows from the choice, which
    the fingerprint names, so it is no part of the fingerprint."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def is_reference(self) -> bool:
        """Tell whether this is what all other ways to run the model are compared with."""
        return (self.runtime, self.precision) == ("eager", "fp32")

    @property
    def identity(self) -> str | None:
        """Return all that decides the module's outputs; None where its tensors are not known."""
        if self.weights_sha256 is None:
            return None
        transform = self.transform and self.transform.exact()
        return json.dumps(
            [
                *(self.name, self.kind, self.code_sha256, self.weights_sha256, self.layer),
                transform and transform.to_dict(),
                len(self.task.labels),
            ]
        )

    @property
    def changes_pixels(self) -> bool:
        """Tell whether the decoder may give other pixels than libjpeg from the whole file."""
        return self.transform is not None and self.transform.changes_pixels

    def as_reference(self) -> ModelSpec:
        """Return what this is compared with: eager fp32 over exactly decoded pixels."""
        transform = self.transform and self.transform.exact()
        return replace(
            self, runtime="eager", precision="fp32", transform=transform, artefact_sha256=None
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into fingerprints, plans and manifests (no storage options)."""
        return {
            "name": self.name,
            "kind": self.kind,
            "code_sha256": self.code_sha256,
            "weights_sha256": self.weights_sha256,
            "transform": self.transform.to_dict() if self.transform else None,
            "task": self.task.to_dict(),
            "layer": self.layer,
            "precision": self.precision,
            "runtime": self.runtime,
        }


@dataclass(frozen=True)
class PredictorConfig:
    """What an actor of the pool is made from."""

    spec: ModelSpec
    batch_size: int
    """Rows of one model call, until out of memory halves it."""
    num_gpus: float
    """0 predicts on the CPU."""
    num_threads: int
    """Torch threads on the CPU."""
    pass_through: pa.Schema
    num_features: int = 0
    """Length of the feature vectors; 0 where the rows are images."""
    limits: AgreementLimits | None = None
    """Compare some rows with eager fp32 by these; None where this is eager fp32."""
    run_id: str = ""
    """Whose actors agree on who compares."""
    models: Store | None = None
    """The output, where calibrated models are fetched from."""


def resolve_model(
    model: Model,
    transform: Transform,
    *,
    allow_import: Sequence[str] = (),
    has_features: bool = False,
) -> ModelSpec:
    """Find the model, its transform, labels and weights digest without building it.

    Args:
        model: The job's model section.
        transform: The job's transform section; its fields win over the model's own.
        allow_import: Prefixes of modules that `factory` may name, beside those of the
            environment variable PIPELINE_ALLOW_IMPORT.
        has_features: The input is a float vector a row, so there is no transform.

    Raises:
        JobError: The model is unknown or not allowed, its weights or labels cannot be used, or
            the transform is incomplete.
    """
    kind, card, code = (
        _factory_card(model.factory, allow_import)
        if model.factory is not None
        else _named_card(model.name or "", wants_labels=model.labels is None)
    )
    weights_uri = model.weights or card.weights_path
    if weights_uri is None and kind == "torchvision":
        raise JobError(
            f"model.weights: {card.name} needs the URI of a state dict "
            f"({', '.join(WEIGHT_SUFFIXES)}); nothing is downloaded silently"
        )
    if weights_uri is not None:
        check_suffix(weights_uri)
    return ModelSpec(
        name=card.name,
        kind=kind,
        code_sha256=code,
        weights_uri=weights_uri,
        weights_sha256=weights_digest(weights_uri, model.weights_sha256, model.storage_options),
        transform=_choose_transform(card, transform, has_features=has_features),
        task=_task(model, card, allow_import),
        precision=model.precision,
        runtime=model.runtime,
        layer=model.layer,
        storage_options=model.storage_options,
    )


def load_module(spec: ModelSpec) -> torch.nn.Module:
    """Build the module and load its weights, in eval mode, float32, on the CPU.

    Raises:
        JobError: The weights do not fit the architecture, are not plain weights, or have another
            digest than the spec says.
    """
    try:
        module = _build(spec)
    except PipelineError:
        raise
    except Exception as error:  # a user's factory may raise anything
        raise JobError(
            f"model {spec.name}: cannot be built: {type(error).__name__}: {error}"
        ) from error
    if spec.weights_uri is not None:
        state = read_state_dict(spec.weights_uri, spec.weights_sha256, spec.storage_options)
        try:
            module.load_state_dict(state, strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise JobError(f"{spec.weights_uri}: does not fit {spec.name}: {reason}") from None
    return module.eval()


def _build(spec: ModelSpec) -> torch.nn.Module:
    import torch

    if spec.kind == "torchvision":
        module = torchvision_module(spec.name, **_num_classes(spec.task))
    elif spec.kind == "entry_point":
        module = _entry_point_card(spec.name).build()
    else:
        module = import_callable("model.factory", spec.name)()
    if not isinstance(module, torch.nn.Module):
        raise JobError(f"model {spec.name}: returned {type(module).__name__}, not an nn.Module")
    return module


def _named_card(name: str, *, wants_labels: bool) -> tuple[Kind, ModelCard, str]:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            return "entry_point", _entry_point_card(name), source_digest(entry.module)
    facts = torchvision_facts(name)
    if facts is None:
        ours = sorted(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))
        raise JobError(
            f"model.name = {name!r}: neither an installed model ({', '.join(ours) or 'none'}) "
            "nor a torchvision one"
        )
    transform = facts["transform"] and TransformSpec.from_dict(facts["transform"])
    card = ModelCard(
        name=name,
        build=functools.partial(torchvision_module, name),
        transform=transform,
        labels=tuple(facts["labels"]) if wants_labels else None,
    )
    code = hashlib.sha256(f"torchvision {version('torchvision')}".encode()).hexdigest()
    return "torchvision", card, code


def _entry_point_card(name: str) -> ModelCard:
    entry = next(e for e in entry_points(group=ENTRY_POINT_GROUP) if e.name == name)
    card = entry.load()()
    if not isinstance(card, ModelCard):
        raise JobError(f"model {name}: its entry point returned {type(card).__name__}")
    return card


def _factory_card(factory: str, allow_import: Sequence[str]) -> tuple[Kind, ModelCard, str]:
    module_name = require_allowed("model.factory", factory, allow_import)
    card = ModelCard(name=factory, build=import_callable("model.factory", factory))
    return "factory", card, source_digest(module_name)


def _num_classes(task: TaskSpec) -> dict[str, int]:
    """A classifier has as many outputs as labels; other tasks take the architecture as it is."""
    return {"num_classes": len(task.labels)} if task.kind == "classify" else {}


def _task(model: Model, card: ModelCard, allow_import: Sequence[str]) -> TaskSpec:
    labels: tuple[str, ...] = ()
    if model.task == "classify":
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
        kind=model.task,
        labels=labels,
        top_k=min(model.top_k, len(labels)) if labels else 0,
        embedding_dim=model.embedding_dim or 0,
        l2_norm=model.l2_norm,
        outputs=tuple(OutputSpec(output.name, output.shape) for output in model.outputs),
        targets=model.targets,
        postprocess=model.postprocess,
        postprocess_sha256=code,
    )


def _choose_transform(
    card: ModelCard, wanted: Transform, *, has_features: bool
) -> TransformSpec | None:
    if not has_features:
        return _merge_transform(card.name, card.transform, wanted)
    given = sorted(wanted.model_fields_set)
    if given:
        raise JobError(f"transform.{given[0]}: has no effect on source.features; leave it out")
    return None


def _merge_transform(name: str, default: TransformSpec | None, wanted: Transform) -> TransformSpec:
    base: dict[str, Any] = default.to_dict() if default else {}
    base.setdefault("shrink_on_load", False)
    base.setdefault("jpeg_decoder", "cpu")
    given = {key: value for key, value in wanted.model_dump().items() if value is not None}
    if "size_px" in given and "resize_px" not in given and default:
        # Keep the model's own ratio of resize to crop.
        given["resize_px"] = round(given["size_px"] * base["resize_px"] / base["size_px"])
    merged = {**base, **given}
    missing = [key for key in type(wanted).model_fields if key not in merged]
    if missing:
        raise JobError(f"transform: {name} brings no transform; give {', '.join(missing)}")
    try:
        return TransformSpec.from_dict(merged)
    except ValueError as error:
        raise JobError(f"transform: {error}") from None


def _read_labels(model: Model, labels: str | tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(labels, str):
        return labels
    data = read_file(labels, model.storage_options, "model.labels")
    try:
        text = data.decode("utf-8")
        names = json.loads(text) if labels.endswith(".json") else None
    except ValueError as error:
        raise JobError(f"model.labels = {labels}: cannot be read: {error}") from None
    if labels.endswith(".json"):
        if not (isinstance(names, list) and all(isinstance(item, str) for item in names)):
            raise JobError(f"model.labels = {labels}: expected a JSON list of strings")
        return tuple(names)
    return tuple(line.strip() for line in text.splitlines() if line.strip())
