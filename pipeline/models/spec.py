"""What a model is: its card, the plain spec that decides the predictions, and the module itself.

`load_module` runs in the actor; until then nothing here imports torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.user_errors import SHOW_ALL, tell
from pipeline.models.agreement import AgreementLimits
from pipeline.models.allowed_imports import import_callable
from pipeline.models.factory_tensors import pin, seeded
from pipeline.models.state_dict import load_state
from pipeline.models.tasks import make_task
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.torchvision_catalog import torchvision_module
from pipeline.models.weights import read_weights
from pipeline.preprocessing.model_input import Input
from pipeline.preprocessing.transform import TransformSpec
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP = "pipeline.models"

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
    input: Input
    """What it sees of a row."""
    task: TaskSpec
    precision: str
    runtime: str = "eager"
    layer: str | None = None
    """The submodule whose output is taken; None takes the model's own."""
    artefact_sha256: str | None = None
    """Precision int8: the calibrated model, once there is one. It follows from the choice, which
    the fingerprint names, so it is no part of the fingerprint."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights_key: str | None = None
    """Under which key of the weights file the tensors lie; None takes the file itself."""

    @property
    def is_reference(self) -> bool:
        """Tell whether this is what all other ways to run the model are compared with."""
        return (self.runtime, self.precision) == ("eager", "fp32")

    @property
    def identity(self) -> str | None:
        """Return all that decides the module's outputs; None where its tensors are not known."""
        if self.weights_sha256 is None:
            return None
        return json.dumps(
            [
                *(self.name, self.kind, self.code_sha256, self.weights_sha256, self.layer),
                *([self.weights_key] if self.weights_key else []),
                self.input.exact().settings(),
                len(self.task.labels),
            ]
        )

    def fitted(self, fields: pa.Schema) -> ModelSpec:
        """Return the same for shards with these input columns; see `Input.fitted`."""
        return replace(self, input=self.input.fitted(fields))

    def as_reference(self) -> ModelSpec:
        """Return what this is compared with: eager fp32 over exactly prepared rows."""
        return replace(
            self,
            runtime="eager",
            precision="fp32",
            input=self.input.exact(),
            artefact_sha256=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what goes into fingerprints, plans and manifests (no storage options)."""
        return {
            "name": self.name,
            "kind": self.kind,
            "code_sha256": self.code_sha256,
            "weights_sha256": self.weights_sha256,
            # Only where it is set, so that a retry of what was published before finds its settings.
            **({"weights_key": self.weights_key} if self.weights_key else {}),
            "transform": self.input.settings(),
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
    limits: AgreementLimits | None = None
    """Compare some rows with eager fp32 by these; None where this is eager fp32."""
    run_id: str = ""
    """Whose actors agree on who compares."""
    models: Store | None = None
    """The output, where calibrated models are fetched from and tensors are pinned."""
    pin: str | None = None
    """Where in the output the digest of the model's own tensors is; None pins nothing."""


def load_module(spec: ModelSpec, salt: str = "") -> torch.nn.Module:
    """Build the module and load its weights, in eval mode, float32, on the CPU.

    Args:
        spec: Which one.
        salt: Draws other random parameters; see `own_tensors.seeded`.

    Raises:
        JobError: The weights do not fit the architecture, are not plain weights, or have another
            digest than the spec says.
    """
    try:
        with seeded(spec.name, salt):
            module = _build(spec)
    except PipelineError:
        raise
    except Exception as error:  # a user's factory may raise anything
        told = tell(error, spec.name.partition(":")[0])
        raise JobError(f"model {spec.name}: cannot be built: {told}{SHOW_ALL}") from error
    if spec.weights_uri is not None:
        held = read_weights(spec.weights_uri, spec.weights_sha256, spec.storage_options)
        load_state(module, held, spec.weights_key, spec.weights_uri, spec.name)
    return module.eval()


def load_pinned(config: PredictorConfig) -> torch.nn.Module:
    """Do the same; tensors that come from no weights file must be those of the other actors.

    Raises:
        JobError: As above, or they are not.
    """
    module = load_module(config.spec)
    if config.pin is not None and config.models is not None:
        pin(config.models, config.pin, module, config.spec.name)
    return module


def _build(spec: ModelSpec) -> torch.nn.Module:
    import torch

    if spec.kind == "torchvision":
        module = torchvision_module(spec.name, **_num_classes(spec.task))
    elif spec.kind == "entry_point":
        module = entry_point_card(spec.name).build()
    else:
        module = import_callable("model.factory", spec.name)()
    if not isinstance(module, torch.nn.Module):
        raise JobError(f"model {spec.name}: returned {type(module).__name__}, not an nn.Module")
    return module


def entry_point_card(name: str) -> ModelCard:
    """Return what an installed package says of its model.

    Raises:
        JobError: It says something else.
    """
    entry = next(e for e in entry_points(group=ENTRY_POINT_GROUP) if e.name == name)
    card = entry.load()()
    if not isinstance(card, ModelCard):
        raise JobError(f"model {name}: its entry point returned {type(card).__name__}")
    return card


def _num_classes(task: TaskSpec) -> dict[str, int]:
    """Say how many outputs a torchvision model is built with, if the task decides it."""
    found = make_task(task).num_outputs()
    return {} if found is None else {"num_classes": found}
