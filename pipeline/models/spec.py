"""A model: its card, the plain spec that decides the predictions, and its module.

`load_module` runs in the actor; until then nothing here imports torch.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.core.errors import JobError, PipelineError
from pipeline.core.registry import INPUTS, TASKS
from pipeline.core.user_code import (
    SHOW_ALL,
    describe_user_error,
    extension_errors,
    import_callable,
)
from pipeline.models.agreement import AgreementLimits
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import directory_module
from pipeline.models.directories.snapshot import ModelDirectory, local_bytes
from pipeline.models.tasks import make_task, task_class
from pipeline.models.tasks.base import TaskSpec
from pipeline.models.torchvision_catalog import torchvision_module
from pipeline.models.weights.state_dict import load_state
from pipeline.models.weights.weights import pin, read_weights, seeded, weights_bytes
from pipeline.preprocessing.images.transform import TransformSpec
from pipeline.preprocessing.model_input import BatchLimits, Input
from pipeline.storage.store import Store

if TYPE_CHECKING:
    import torch

ENTRY_POINT_GROUP = "pipeline.models"
EAGER, FP32 = "eager", "fp32"
"""The runtime and precision that all others are compared with."""

_PX_PER_ROW = 512 * 512
"""Images that keep their size: pixels that a batch may have for each row that it may have."""

Origin = Literal["entry_point", "torchvision", "factory", "directory"]


@dataclass(frozen=True)
class ModelCard:
    """The result of an entry point of group `pipeline.models`; making one must not import torch."""

    name: str
    build: Callable[[], torch.nn.Module]
    """Builds the architecture without weights; with its weights if weights_path is None."""
    transform: TransformSpec | None = None
    labels: tuple[str, ...] | None = None
    weights_path: str | None = None
    """Local path of a state dict that ships with the package."""
    num_channels: int | None = None
    """Channels of the images that it takes; None: unknown."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything about the model that decides the predictions; for JSON, and can be pickled."""

    name: str
    origin: Origin
    code_sha256: str
    """Digest of the source that builds the module, so that changed code never reuses old work."""
    weights_uri: str | None
    weights_sha256: str | None
    input: Input
    """How a row becomes the model's input."""
    task: TaskSpec
    precision: str
    runtime: str = "eager"
    """What runs it; the name of the engine, if the job names another one than its task."""
    layer: str | None = None
    """The submodule whose output is used; None: the output of the model."""
    artefact_sha256: str | None = None
    """Precision int8: digest of the calibrated model, None before calibration. It follows from
    settings in the fingerprint, so it is not part of the fingerprint itself."""
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    weights_key: str | None = None
    """Key of the state dict in the weights file; None: the file is the state dict."""
    directory: ModelDirectory | None = None
    """The model directory; `weights_sha256` is its digest."""
    facts: DirectoryFacts | None = field(default=None, repr=False, compare=False)
    """The facts of the directory."""
    pooling: str | None = None
    """The job's pooling of a directory's encoder; None: the directory's."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of a factory, by name: JSON values."""
    is_pinned: bool = False
    """The job itself says a runtime or a precision."""
    notes: tuple[str, ...] = field(default=(), compare=False)
    """Lines for `pipeline plan`, `<file>: <what was read from it>`; they decide nothing."""

    @property
    def engine(self) -> str:
        """Return the name of the engine that runs the model."""
        return self.runtime if self.has_other_engine else task_class(self.task.kind).engine

    @property
    def has_other_engine(self) -> bool:
        """Tell whether the job names another engine than that of its task; it is the runtime."""
        return self.runtime in task_class(self.task.kind).other_engines

    @property
    def shown_name(self) -> str:
        """Return the name for people: of an .onnx file that of the file."""
        is_file = self.directory is not None and self.directory.is_file
        return self.directory.uri.rpartition("/")[2] if is_file and self.directory else self.name

    @property
    def has_weights(self) -> bool:
        """Tell whether the tensors come from files, not from the code that builds the module."""
        return self.weights_uri is not None or self.directory is not None

    @property
    def is_reference(self) -> bool:
        """Tell whether this is eager fp32, which all other variants are compared with."""
        return (self.runtime, self.precision) == (EAGER, FP32)

    @property
    def takes_fastest(self) -> bool:
        """Tell whether a run may take the fastest runtime at fp32 that is known to agree."""
        return self.is_reference and not self.is_pinned and not self.input.is_approximate

    @property
    def identity(self) -> str | None:
        """Return what decides the module's outputs, as JSON; None if its tensors are unknown."""
        if self.weights_sha256 is None:
            return None
        return json.dumps(
            [
                *(self.name, self.origin, self.code_sha256, self.weights_sha256, self.layer),
                *(self.weights_key, self.pooling, dict(self.args), self.input.exact().settings()),
                *(len(self.task.labels), self.task.prompts),
            ],
            sort_keys=True,
        )

    def fitted(self, fields: pa.Schema) -> ModelSpec:
        """Return the spec completed from the shards' input columns; see `Input.fitted`."""
        with extension_errors(INPUTS, self.input.name):
            return replace(self, input=self.input.fitted(fields))

    def output_fields(self) -> list[pa.Field]:
        """Return the columns that the task and the input add to the predictions."""
        with extension_errors(TASKS, self.task.kind):
            fields = make_task(self.task).fields()
        return [*fields, *self.input.published_fields()]

    def file_bytes(self) -> int:
        """Return the size in bytes of the files that it is loaded from; 0 if there are none.

        Raises:
            PipelineError: They cannot be found.
        """
        if self.directory is not None:
            return local_bytes(self.directory)
        return weights_bytes(self.weights_uri, self.storage_options) if self.weights_uri else 0

    def as_reference(self) -> ModelSpec:
        """Return the reference of this spec: eager fp32 over exactly prepared rows.

        Of quantised weights there is none, so it is the spec itself.
        """
        if self.facts is not None and self.facts.quantised:
            return self
        return replace(
            self,
            runtime=EAGER,
            precision=FP32,
            input=self.input.exact(),
            artefact_sha256=None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for fingerprints, plans and manifests, without storage options."""
        return {
            "name": self.name,
            "kind": self.origin,
            "code_sha256": self.code_sha256,
            "weights_sha256": self.weights_sha256,
            "weights_key": self.weights_key,
            "pooling": self.pooling,
            "args": dict(self.args),
            "transform": self.input.settings(),
            "task": self.task.to_dict(),
            "layer": self.layer,
            "precision": self.precision,
            "runtime": self.runtime,
        }


@dataclass(frozen=True)
class PredictorConfig:
    """Everything that a model actor is made from; can be pickled."""

    spec: ModelSpec
    batch_size: int
    """The most rows per model call, until lack of memory halves it."""
    num_gpus: float
    """GPUs per actor; 0: predict on the CPU."""
    num_threads: int
    """Torch threads on the CPU."""
    pass_through: pa.Schema
    limits: AgreementLimits | None = None
    """Limits of the reference check; None: no check, as for eager fp32 itself."""
    run_id: str = ""
    """The run whose actors share one reference check per CPU node."""
    models: Store | None = None
    """The output, which holds calibrated models and pinned digests."""
    pin: str | None = None
    """Path in the output of the pinned digest of tensors; None: nothing is pinned."""
    batch_tokens: int = 0
    """The most tokens per model call, padding included, for inputs with `counts_tokens`; 0: only
    rows count."""

    @property
    def limits_of_batch(self) -> BatchLimits:
        """Return how large a batch may be."""
        return BatchLimits(self.batch_size, self.batch_tokens, self.batch_size * _PX_PER_ROW)


def load_module(spec: ModelSpec, salt: str = "") -> torch.nn.Module:
    """Build the module and load its weights, in eval mode, float32, on the CPU.

    Args:
        salt: Draws other random parameters; see `weights.seeded`.

    Raises:
        JobError: The weights do not fit the architecture, are not plain weights, or have a digest
            other than the spec's.
    """
    uri, held = spec.weights_uri, None
    if uri is not None:
        held = read_weights(uri, spec.weights_sha256, spec.storage_options)
    try:
        with seeded(spec.name, salt):
            module, is_loaded = _build(spec, held)
    except PipelineError:
        raise
    except Exception as error:  # a user's factory may raise anything
        reason = describe_user_error(error, spec.name.partition(":")[0])
        raise JobError(f"model {spec.name}: cannot be built: {reason}{SHOW_ALL}") from error
    if uri is not None and held is not None and not is_loaded:
        load_state(module, held, spec.weights_key, uri, spec.name)
    return module.eval()


def load_pinned(config: PredictorConfig) -> torch.nn.Module:
    """Load the module as `load_module`; tensors from a factory must equal those of other actors.

    Raises:
        JobError: As `load_module`, or the tensors differ.
    """
    module = load_module(config.spec)
    if config.pin is not None and config.models is not None:
        pin(config.models, config.pin, module, config.spec.name)
    return module


def _build(spec: ModelSpec, held: dict[Any, Any] | None) -> tuple[torch.nn.Module, bool]:
    """Return the module, and whether it has what the weights file holds."""
    import torch

    is_loaded = False
    if spec.directory is not None:
        assert spec.facts is not None, "a directory has facts"
        module = directory_module(spec.directory, spec.facts, spec.input, spec.pooling, spec.task)
    elif spec.origin == "torchvision":
        state = held if spec.weights_key is None else None
        module, is_loaded = torchvision_module(
            spec.name, spec.weights_sha256, state, **_num_classes(spec.task)
        )
    elif spec.origin == "entry_point":
        module = entry_point_card(spec.name).build()
    else:
        module = import_callable("model.factory", spec.name)(**copy.deepcopy(dict(spec.args)))
    if not isinstance(module, torch.nn.Module):
        raise JobError(f"model {spec.name}: returned {type(module).__name__}, not an nn.Module")
    return module, is_loaded


def entry_point_card(name: str) -> ModelCard:
    """Return the card of a model of an installed package.

    Raises:
        JobError: The entry point fails, or returns something else.
    """
    entry = next(e for e in entry_points(group=ENTRY_POINT_GROUP) if e.name == name)
    card = entry.load()()
    if not isinstance(card, ModelCard):
        raise JobError(f"model {name}: its entry point returned {type(card).__name__}")
    return card


def _num_classes(task: TaskSpec) -> dict[str, int]:
    """Return torchvision's option for the number of outputs, {} if the task does not decide it."""
    num_outputs = make_task(task).num_outputs()
    return {} if num_outputs is None else {"num_classes": num_outputs}
