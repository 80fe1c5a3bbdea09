"""The protocol of tasks: their columns, the reduction of a batch, the agreement of predictions.

`fields` runs on the driver and does not import torch; `reduce` runs on the device and keeps only
what is written; `columns` makes Arrow arrays of it. The job declares schemas; they are never
inferred.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.models.agreement import (
    Agreement,
    AgreementLimits,
    column_differences,
    compare_numbers,
)
from pipeline.models.outputs import OutputSpec
from pipeline.preprocessing.texts.windows import Windows

if TYPE_CHECKING:
    import torch

    from pipeline.job.model import Model
    from pipeline.models.generate.spec import Generation, Transcription

Arrays = dict[str, npt.NDArray[Any]]
"""The results of N rows after `Task.reduce`: name -> (N, ...)."""
Head = Literal["", "places", "rows"]
"""How one tensor has boxes: `places` (B, 4 + K, P): of each place a box and K scores; `rows`
(B, M, 6): of each detection a box, score and label; '': in another form."""
Mask = npt.NDArray[np.bool_]
"""bool (N,): rows of a slice that have a prediction."""


@dataclass(frozen=True)
class TaskSpec:
    """The settings of a task; for JSON, and can be pickled."""

    kind: str
    """Name of the task in `TASKS`."""
    labels: tuple[str, ...] = ()
    top_k: int = 1
    embedding_dim: int = 0
    model_dim: int = 0
    """Length of the model's vectors, whose first `embedding_dim` numbers are kept; 0: all are."""
    l2_norm: bool = False
    outputs: tuple[OutputSpec, ...] = ()
    targets: tuple[str, ...] = ()
    postprocess: str | None = None
    postprocess_sha256: str = ""
    """Digest of the source of the post-processing module."""
    min_score: float = 0.5
    """Tasks `multilabel`, `detect`: probability from which on a label, a detection is written."""
    embedding_type: str = "float32"
    """Task `embed`: `float32` or `float16`."""
    activation: str = "identity"
    """Task `score`: `identity` or `sigmoid`, as the model says."""
    aggregation: str = "simple"
    """Task `tokens`: how tokens become entities."""
    prompts: tuple[str, ...] = ()
    """Tasks `zero_shot`, `choices`: the text of each label, in the order of `labels`."""
    prior_corrected: bool = False
    """Task `choices`: the likelihood of an answer without a text is taken off."""
    generation: Generation | None = None
    """Task `generate`: how texts are written."""
    postprocess_args: Mapping[str, Any] = field(default_factory=dict)
    """Its arguments, by name: JSON values."""
    max_detections: int = 100
    """Task `detect`: the most detections of an image."""
    nms_iou: float | None = None
    """Task `detect`: of boxes of one label that overlap more than this the best is kept; None: all
    are."""
    head: Head = ""
    """Task `detect`: how the only output of the model has boxes."""
    scores: str = "logits"
    """Tasks that score labels: what the outputs are: see `tasks.scores`."""
    has_windows: bool = False
    """Whether long texts are cut into windows, of which the task makes one prediction."""
    transcription: Transcription | None = None
    """Task `transcribe`: how frames become texts."""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form for fingerprints and manifests, without defaults.

        So a field that is added leaves the fingerprints of other jobs as they are. Labels are a
        digest.
        """
        usual = {setting.name: setting.default for setting in fields(self)} | {
            "labels": self.labels
        }
        values = {name: value for name, value in asdict(self).items() if value != usual[name]}
        if self.generation is not None and (schema := values["generation"].pop("schema")):
            values["generation"]["schema_sha256"] = hashlib.sha256(schema.encode()).hexdigest()
        if self.generation is not None:
            written, rules = values["generation"], values["generation"]["rules"]
            unused = ["temperature", "top_p", "seed"] if not self.generation.temperature else []
            for name in [*unused, *["timestamps"] * (not self.generation.timestamps)]:
                del written[name]
            for name in [name for name in ("cleans", "latest_begin") if not rules[name]]:
                del rules[name]
        if self.transcription is not None:
            tokens = json.dumps(values["transcription"].pop("tokens"))
            values["transcription"]["tokens_sha256"] = hashlib.sha256(tokens.encode()).hexdigest()
        values["num_labels"] = len(self.labels)
        values["labels_sha256"] = hashlib.sha256("\n".join(self.labels).encode()).hexdigest()
        if self.scores == "open":
            del values["scores"]  # rows that are written have logits
        plain: dict[str, Any] = json.loads(json.dumps(values))
        return plain


class Task(Protocol):
    """How outputs become columns. Subclass it; the defaults suit tasks of plain numbers."""

    spec: TaskSpec

    engine: ClassVar[str] = "torch"
    """The engine that runs its models."""
    other_engines: ClassVar[tuple[str, ...]] = ()
    """Other engines that can run its models, if the job names one."""
    runtimes: ClassVar[tuple[str, ...] | None] = None
    """The runtimes that may run its models; None: all."""
    job_fields: ClassVar[tuple[str, ...]] = ()
    """Fields of the job's section `model` that belong to the task; others have no effect."""
    needs_labels: ClassVar[bool] = False
    """Whether the task needs class names, from the job or the model."""
    scores_of_logits: ClassVar[str] = ""
    """`softmax` or `sigmoid`, which makes scores of a model's logits; '': outputs are no logits."""
    needs_geometry: ClassVar[bool] = False
    """Whether rows must be images with a known resize and crop."""
    serves: ClassVar[tuple[str, ...]] = ()
    """Families of torchvision, besides classifiers, whose outputs the task takes."""
    reduces: ClassVar[tuple[str, ...]] = ()
    """Built-in tasks whose outputs it takes, the best first: a model directory that serves one of
    them serves this one, with the same outputs. Not needed by a task that directories name."""
    instead: ClassVar[Mapping[str, str]] = {}
    """Tasks of directories that do not serve this one -> how they answer the same question."""
    takes_all_outputs: ClassVar[bool] = False
    """Whether the task takes all outputs of an .onnx file as they are, not the first one alone."""
    is_per_token: ClassVar[bool] = False
    """Whether axis 1 of the results is the tokens of a row, (N, L, ...); zeros behind the last."""
    takes_windows: ClassVar[bool] = False
    """Whether it makes one prediction of the windows of a text: `columns_of_windows`."""
    checks_reference: ClassVar[bool] = False
    """Whether the reference check compares eager fp32, too, with another way to the same rows."""
    has_golden: ClassVar[bool] = True
    """Whether golden rows can be compared."""
    golden_names: ClassVar[Mapping[str, str]] = {}
    """Column -> its name in golden rows, whose input may have that of the column."""
    has_golden_folders: ClassVar[bool] = False
    """Whether golden rows may be a folder with one subfolder of images per label."""

    @classmethod
    def problems(cls, model: Model) -> Iterator[str]:
        """Yield the problems of a job's section `model` for this task."""
        yield from ()

    @classmethod
    def job_labels(cls, model: Model) -> tuple[str, ...]:
        """Return the labels that fields of this task alone give; empty if there are none."""
        return ()

    @classmethod
    def new_tokens(cls, model: Model) -> int:
        """Return how many tokens a job's model writes for a row at most; 0: it writes none."""
        return 0

    @classmethod
    def needs_places(cls, model: Model) -> bool:
        """Tell whether it takes the places of tokens in their text; see `TextInput.fields`."""
        return cls.is_per_token

    def fields(self) -> list[pa.Field]:
        """Return the columns that the task adds."""
        ...

    def reduce(self, outputs: Any, num_rows: int) -> dict[str, torch.Tensor]:
        """Check the shapes of a batch's outputs and reduce them to what is written.

        It asks for no value of theirs: on a GPU that would wait for the model.

        Args:
            outputs: The outputs of the model, on the device, of any structure.
            num_rows: B.

        Returns:
            Name -> (B, ...), on the device.

        Raises:
            OutputError: The outputs do not have the declared shape; names both.
        """
        ...

    def reduce_batch(
        self, outputs: Any, num_rows: int, batch: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Reduce outputs as `reduce` does, with the batch: boxes may be shares of an image.

        Args:
            outputs: As for `reduce`.
            num_rows: B.
            batch: The tensors of the batch that the model saw, as `Input.slots` has them; they may
                have more rows than B, of padding.
        """
        return self.reduce(outputs, num_rows)

    def check(self, arrays: Arrays) -> None:
        """Check the values of a batch, (B, ...) each, on the host: `reduce` must not wait for them.

        Raises:
            OutputError: They are not what the job declares.
        """

    def columns(self, arrays: Arrays, ok: Mask, rows: pa.Table) -> dict[str, pa.Array]:
        """Make the task's columns for the N rows of a slice.

        Args:
            arrays: The results, each (N, ...); values of rows that are not ok are arbitrary.
            ok: bool (N,); other rows are null.
            rows: The slice's N prepared rows, in order, with what the input's `prepare` leaves.
        """
        ...

    def columns_of_windows(
        self, arrays: Arrays, ok: Mask, rows: pa.Table, windows: Windows
    ) -> dict[str, pa.Array]:
        """Make the task's columns as `columns` does, of results of the windows of the rows.

        Args:
            arrays: The results, each (W, ...).
            windows: The W windows of the N rows.
        """
        ...

    def is_of_tokens(self, name: str) -> bool:
        """Tell whether axis 1 of a result is the tokens of a row."""
        return self.is_per_token

    def num_outputs(self) -> int | None:
        """Return the number of outputs to build a model with; None: as the architecture has it."""
        return None

    def compare(self, reference: Arrays, candidate: Arrays, limits: AgreementLimits) -> Agreement:
        """Compare the results of two runs over the same rows, each (N, ...)."""
        return compare_numbers(reference, candidate, limits)

    def differences(self, known: pa.Table, actual: pa.Table, limits: AgreementLimits) -> list[str]:
        """Describe for each row how a prediction differs from the known one; '' if they agree.

        Numbers are compared by `compare`, as results with the names of their columns, and what is
        off is relative to their usual size: give it many rows at once.

        Args:
            known: N rows of published columns of the task, or of `parse_golden`.
            actual: The same rows as they are published, none of them null.
            limits: Largest differences of a row.
        """
        return column_differences(known, actual, limits, self.compare)

    def measured_columns(self) -> tuple[str, ...]:
        """Return the columns whose histograms are kept for drift; texts count as labels."""
        return ()

    def golden_columns(self) -> tuple[str, ...]:
        """Return the columns that golden rows must have beside their input."""
        return tuple(field.name for field in self.fields())

    def parse_golden(self, golden: pa.Table) -> pa.Table:
        """Cast the expected columns of golden rows to the task's types, without the input.

        Raises:
            pa.ArrowException: A column cannot be cast.
        """
        types, columns = {field.name: field.type for field in self.fields()}, {}
        for name in self.golden_columns():
            column, dtype = golden.column(name), types[name]
            is_number = pa.types.is_floating(dtype)
            columns[name] = (
                column.cast(pa.float64()) if is_number else pa.array(column.to_pylist(), dtype)
            )
        return pa.table(columns)

    def describe(self, row: Mapping[str, Any]) -> str:
        """Return a prediction in a few words; `row` maps column -> value."""
        return f"columns {', '.join(field.name for field in self.fields())}"


def as_lists(entries: pa.Array, places: npt.NDArray[Any], ok: Mask) -> pa.Array:
    """Return entries (E,) as one list per row; `places`, (E,) ascending, are their rows.

    Rows that are not ok, of `ok` (N,), are null.
    """
    until = np.cumsum(np.bincount(places, minlength=len(ok)))
    offsets = pa.array(np.concatenate([[0], until]).astype(np.int32))
    return pa.ListArray.from_arrays(offsets, entries, mask=pa.array(~ok))
