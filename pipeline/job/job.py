"""The job file: strict pydantic models, safe YAML, two substitutions, and one clear error.

Nothing here touches storage, Ray or torch: a job is a frozen value that everybody may read.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from pipeline.core import registry
from pipeline.job.deadline import seconds_until
from pipeline.job.extensions import registered
from pipeline.job.gates import Gates
from pipeline.job.section import PositiveInt, Section
from pipeline.job.source import Source

AUTO = "auto"
"""Runtime, precision or layout: the run measures, and takes the fastest that agrees."""
Triple = tuple[float, float, float]
_CHANNELS = ("red", "green", "blue")
ColumnName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Transform(Section):
    """How a decoded image becomes model input; what is left out comes from the model."""

    size_px: PositiveInt | None = None
    """Side of the square centre crop that the model sees."""
    resize_px: PositiveInt | None = None
    """The shorter side is resized to this before the crop."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Resampling filter, with antialiasing."""
    mean: Triple | None = None
    """Channel means in [0, 1], subtracted on the device."""
    std: Triple | None = None
    """Channel standard deviations in [0, 1], divided by on the device."""
    shrink_on_load: bool | None = None
    """Let the JPEG decoder itself halve large photos, as often as twice `resize_px` is left: far
    faster, and other pixels. The run measures first whether its predictions agree (see `gates`)."""
    jpeg_decoder: Literal["cpu", "gpu"] | None = None
    """What decodes JPEGs; left out: `cpu`. `gpu`: the model's GPU, with nvJPEG; its pixels are a
    little different, which is measured as for `shrink_on_load`. What nvJPEG does not take (other
    formats, grey, CMYK, turned by EXIF, damaged) is decoded on the CPU as ever. Experimental:
    `gpu` has never run on a real GPU."""

    @field_validator("size_px", "resize_px", mode="before")
    @classmethod
    def _one_side(cls, size: Any) -> Any:
        if isinstance(size, list | tuple):
            raise ValueError("expected one whole number: only squares are supported")
        return size

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _of_three_channels(cls, values: Any) -> Any:
        if isinstance(values, list | tuple) and len(values) != len(_CHANNELS):
            numbers = "number" if len(values) == 1 else "numbers"
            raise ValueError(
                f"has {len(values)} {numbers}, needs 3 ({', '.join(_CHANNELS)}); models of other "
                "channels are not supported"
            )
        # What passed a function counts as Python, in which a strict tuple has to be one.
        return tuple(values) if isinstance(values, list) else values

    @field_validator("mean", "std")
    @classmethod
    def _from_0_to_1(cls, values: Triple | None, info: ValidationInfo) -> Triple | None:
        if values is not None and not all(0 <= value <= 1 for value in values):
            raise ValueError(f"{info.field_name} is on the scale 0 to 1: divide by 255")
        if values is not None and info.field_name == "std" and min(values) == 0:
            raise ValueError("std divides, so its values must be above 0")
        return values


class Output(Section):
    """One output of a model for task `raw`."""

    name: str = Field(default="output", pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Its column."""
    shape: tuple[PositiveInt, ...]
    """Its shape for one row; `[]` is one number."""


class Model(Section):
    """Which model predicts, and how."""

    name: str | None = None
    """An installed entry point of group `pipeline.models`, or a torchvision model name."""
    factory: str | None = None
    """`package.module:callable` returning an `nn.Module`; its prefix must be allowed."""
    weights: str | None = None
    """URI of a state dict: `.safetensors`, or `.pt`/`.pth` loaded with weights_only."""
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Expected digest of the weights file; another digest is refused."""
    weights_key: str | None = None
    """Key of the weights file under which the state dict lies, as in a checkpoint that holds more:
    `model`, or `state.model` further down. What fits is named if it is missing."""
    labels: str | tuple[str, ...] | None = None
    """Class names: a list, or the URI of a text file with one a line or of a JSON list."""
    task: str = "classify"
    """What to make of the outputs: `classify` gives label, score and the top k; `embed` one
    vector; `regress` one number a target; `raw` the outputs as they are. Installed packages may add
    tasks (entry points `pipeline.tasks`)."""
    top_k: PositiveInt = 5
    """Task `classify`: how many classes `top_k` lists (fewer if the model has fewer)."""
    layer: str | None = None
    """The submodule whose output is taken instead of the model's, as `named_modules` calls it."""
    embedding_dim: PositiveInt | None = None
    """Task `embed`: length of the vector."""
    embedding_type: Literal["float32", "float16"] = "float32"
    """Task `embed`: type of the numbers that are written. A number beyond float16 (65,504) makes
    its row `non_finite`."""
    l2_norm: bool = False
    """Task `embed`: scale each vector to length 1."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Task `multilabel`: labels of at least this probability are written."""
    aggregation: Literal["none", "simple", "first", "average", "max"] = "simple"
    """Task `tokens`: how tokens become entities. `none`: each token is one; `simple`: neighbours of
    one label; `first`, `average`, `max`: the same with one label for a word, which is that of its
    first token, of the mean of its tokens' scores, or of its token with the highest score."""
    prompts: tuple[str, ...] | dict[str, str] = ()
    """Task `zero_shot`: a text for each label, or a mapping of label to text. For an NLI model the
    text is the hypothesis, such as `This example is about sport.`"""
    targets: tuple[str, ...] = ()
    """Task `regress`: a column name for each number; left out: one column `value`."""
    outputs: tuple[Output, ...] = ()
    """Task `raw`: the outputs to keep, in the model's order or by its names."""
    postprocess: str | None = None
    """Task `raw`: `package.module:callable` whose result turns outputs into declared columns."""
    runtime: str = "eager"
    """What runs the model: torch as it is, torch.compile, or the library of that name (its extra
    must be installed): `onnxruntime`, `openvino`, `mnn`, or what an installed package adds (entry
    points `pipeline.runtimes`). `auto` measures what is there and takes the fastest that agrees."""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16", "int8"] = "fp32"
    """Arithmetic of the model; scores are always float32. `tf32` and `fp16` need a GPU. `int8` is
    for onnxruntime and openvino on the CPU, calibrated on rows of the job and used only if it
    agrees. `auto` measures, as above."""
    batch_size: PositiveInt | None = None
    """Rows of one model call; left out: 32 on CPU, 128 on GPU, or with `auto` what `pipeline tune`
    found. Out of memory halves it."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options for the weights and labels; never written anywhere."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, name: str) -> str:
        registered(registry.TASKS, name)
        return name

    @field_validator("runtime")
    @classmethod
    def _known_runtime(cls, name: str) -> str:
        registered(registry.RUNTIMES, name, (AUTO,))
        return name

    @model_validator(mode="after")
    def _one_model(self) -> Model:
        problems = [*self._without_effect()]
        if (self.name is None) == (self.factory is None):
            problems.append("give exactly one of name and factory")
        runtime = registered(registry.RUNTIMES, self.runtime, (AUTO,))
        if self.precision == "int8" and runtime and "int8" not in runtime.precisions:
            able = [name for name in registry.built_in(registry.RUNTIMES)
                    if "int8" in registry.load(registry.RUNTIMES, name).precisions]  # fmt: skip
            problems.append(f"precision 'int8' needs runtime {', '.join(able)} or auto")
        if self.weights_key is not None and self.weights is None:
            problems.append("weights_key has no effect without weights")
        problems += registry.load(registry.TASKS, self.task).problems(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _without_effect(self) -> Iterator[str]:
        own = registry.load(registry.TASKS, self.task).job_fields
        owners: dict[str, list[str]] = {}
        for task in registry.built_in(registry.TASKS):
            for field in registry.load(registry.TASKS, task).job_fields:
                owners.setdefault(field, []).append(repr(task))
        for field, tasks in owners.items():
            if field in self.model_fields_set and getattr(self, field) and field not in own:
                can_be_null = type(self).model_fields[field].default is None
                otherwise = f", or --set model.{field}=null" if can_be_null else ""
                yield (
                    f"{field} has no effect with task {self.task!r}, only {', '.join(tasks)}: "
                    f"leave it out{otherwise}"
                )


class Resources(Section):
    """What one model actor takes, and how many there are; left out: filled by the cluster."""

    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor; fractions share a card. 0 runs on the CPU."""
    actors_per_gpu: PositiveInt | None = None
    """How many actors share each GPU if `num_gpus` is 1; left out: 1, or with `auto` what
    `pipeline tune` found."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPU cores (and torch threads) of one actor; left out: 1, or with `auto` what `pipeline tune`
    found."""
    min_actors: PositiveInt | None = None
    """Smallest size of the actor pool; left out: max_actors."""
    max_actors: PositiveInt | None = None
    """Largest size of the actor pool; left out: what the cluster holds."""
    decode_in: Literal["auto", "actors", "tasks"] = "auto"
    """Who decodes and transforms images: the model actors themselves, or tasks on other cores.
    `auto`: the actors on CPUs, tasks beside GPUs; or what `pipeline tune` found faster."""

    @model_validator(mode="after")
    def _ordered(self) -> Resources:
        if self.actors_per_gpu is not None and self.num_gpus != 1:
            raise ValueError(
                f"actors_per_gpu is for num_gpus 1, not {self.num_gpus:g}: each actor gets a share"
            )
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(
                f"min_actors ({self.min_actors}) must not exceed max_actors ({self.max_actors})"
            )
        return self


class Sink(Section):
    """Where the predictions go."""

    uri: str = Field(min_length=1)
    """Root folder of the output; `pipeline/commit/README.md` has its layout."""
    partition: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_.:-]+$"
    )
    """The published piece, `key=value`, usually `date=${date}`; left out: the whole output."""
    partition_columns: tuple[ColumnName, ...] = ()
    """Pass-through columns, `label` or other predictions that become folders inside the partition,
    outermost first: `<column>=<value>/`, at most 1,000 of them. Needs `partition`."""
    table: str | None = None
    """`delta`: `predictions/` is a Delta table, too; each publish replaces the partition in it.
    Installed packages may add formats (entry points `pipeline.tables`)."""
    target_part_mib: Annotated[float, Field(gt=0)] = 128.0
    """Published parts are cut near this size, as measured while they are encoded."""
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"
    """Parquet compression of everything that is written."""
    keep_versions: Annotated[int, Field(ge=0)] = 3
    """How many replaced versions of the partition stay for `pipeline rollback`."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options (endpoint, credentials); never written to a manifest, report or log."""

    @field_validator("table")
    @classmethod
    def _known_table(cls, name: str | None) -> str | None:
        if name is not None:
            registered(registry.TABLES, name)
        return name

    @model_validator(mode="after")
    def _partition_first(self) -> Sink:
        columns = self.partition_columns
        if columns and self.partition is None:
            raise ValueError("partition_columns needs partition, as in date=${date}")
        if len({*columns, (self.partition or "").partition("=")[0]}) < len(columns) + 1:
            raise ValueError("name each partition column once, and not the one of partition")
        return self


class Run(Section):
    """How one execution behaves."""

    limit_rows: PositiveInt | None = None
    """Predict only the first this many rows of the input order, for trying things out. The tars of
    a webdataset are then read one after the other, for only so is it known which rows are first."""
    slice_rows: PositiveInt | None = None
    """Rows of one slice, the grain of resuming. Left out: whole batches near 256, of rows below
    16 KiB near 512, of large images fewer; towards the end of the input slices become smaller."""
    lease_ttl_s: Annotated[float, Field(ge=1)] = 60.0
    """A run whose lease was not renewed for so long is taken for dead."""
    deadline: str | None = None
    """Stop then, with exit 6: a time of day in UTC, `06:30`, the next one after the start; or a
    time from the start, `90m`, `2h` or `1h30m`."""
    stall_s: Annotated[float, Field(ge=1)] = 1800.0
    """Without any progress for so long the run ends with exit 7 and tells what is in flight. Longer
    than the model takes to load and compile, and longer than one slice takes."""
    row_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """A worker that so long neither decodes a row nor finishes a batch hangs, and is ended; the row
    it hung on is then found in child processes, which takes this long twice more, and quarantined
    as `timeout`. Loading and compiling a model do not count."""
    single_writer: bool = False
    """Accept a store without create-once: you promise that no other run writes this partition."""
    dedupe: bool = False
    """Images of identical bytes (SHA-256) are computed once, as far as memory keeps earlier
    results; every row gets its prediction. Where tasks decode, they still decode each."""
    price_per_node_hour: Annotated[float, Field(ge=0)] | None = None
    """Price of one node for one hour; the report then says what a million rows cost."""

    @field_validator("deadline")
    @classmethod
    def _comes(cls, deadline: str | None) -> str | None:
        if deadline is not None:
            seconds_until(deadline, dt.datetime.now(dt.UTC))
        return deadline


class Job(Section):
    """One offline inference job."""

    source: Source
    transform: Transform = Transform()
    model: Model
    resources: Resources = Resources()
    sink: Sink
    gates: Gates = Gates()
    run: Run = Run()

    @model_validator(mode="after")
    def _dedupe_images(self) -> Job:
        if self.run.dedupe and self.source.features:
            raise ValueError("run.dedupe is for images; it has no effect on source.features")
        return self

    @model_validator(mode="after")
    def _gpu_decodes(self) -> Job:
        if self.transform.jpeg_decoder != "gpu":
            return self
        if not self.resources.num_gpus:
            raise ValueError(
                "transform.jpeg_decoder 'gpu' decodes on the model's GPU; give resources.num_gpus"
            )
        if self.resources.decode_in == "tasks":
            raise ValueError(
                "transform.jpeg_decoder 'gpu' decodes in the model actors, which hold the GPU; "
                "resources.decode_in 'tasks' has to be 'actors' or left out"
            )
        if self.transform.shrink_on_load:
            raise ValueError(
                "transform.shrink_on_load has no effect with jpeg_decoder 'gpu'; give one of them"
            )
        return self

    @property
    def shares(self) -> Resources:
        """Return the resources as they are divided: who decodes on a GPU has to hold it."""
        is_on_gpu = self.transform.jpeg_decoder == "gpu"
        changes = {"decode_in": "actors"} if is_on_gpu else {}
        return self.resources.model_copy(update=changes)

    @model_validator(mode="after")
    def _golden_is_comparable(self) -> Job:
        task = registry.load(registry.TASKS, self.model.task)
        if self.gates.golden is not None and not task.has_golden:
            raise ValueError(f"gates.golden has no effect with task {self.model.task!r}")
        return self
