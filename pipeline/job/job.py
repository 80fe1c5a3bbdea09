"""The job file: strict pydantic models, safe YAML, two substitutions, and one clear error.

Nothing here touches storage, Ray or torch: a job is a frozen value that everybody may read.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Collection, Sequence
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core import registry
from pipeline.job.gates import Gates
from pipeline.job.model import Model
from pipeline.job.reading.dates import seconds_until
from pipeline.job.section import MAPPING, NUMBER, NotNegative, PositiveInt, Section, by_form
from pipeline.job.source import Source
from pipeline.job.transform import Audio, Text, Transform

_LOCAL_PATHS = {"model": ("path", "weights", "labels"), "text": ("tokenizer",)}
"""Fields of sections that may be local paths."""
Prices = Annotated[
    Annotated[NotNegative, NUMBER] | Annotated[dict[str, NotNegative], MAPPING],
    by_form("a valid number or an object"),
]
ColumnName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Resources(Section):
    """What one model actor takes, and how many there are; left out: filled by the cluster."""

    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs of one actor, at most 1; fractions share a card. 0 runs on the CPU."""
    actors_per_gpu: PositiveInt | None = None
    """How many actors share each GPU if `num_gpus` is 1; left out: 1."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPU cores (and torch threads) of one actor; left out: 1."""
    min_actors: PositiveInt | None = None
    """Smallest size of the actor pool; left out: max_actors."""
    max_actors: PositiveInt | None = None
    """Largest size of the actor pool; left out: what the cluster holds."""
    decode_in: Literal["auto", "actors", "tasks"] = "auto"
    """Who decodes and transforms images: the model actors themselves, or tasks on other cores.
    `auto`: the actors on CPUs, tasks beside GPUs."""

    @field_validator("num_gpus")
    @classmethod
    def _on_one(cls, num_gpus: float) -> float:
        if num_gpus > 1:
            raise ValueError(
                f"an actor computes on one GPU, not on {num_gpus:g}: give 1; there are as many "
                "actors as GPUs, or max_actors"
            )
        return num_gpus

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


class Card(Section):
    """The dataset card, `README.md` in the output: columns, model, counts, how to read it."""

    write: bool = True
    """Write it at each publication; a `README.md` of your own stays as it is."""
    license: Annotated[str, Field(pattern=r"^[^\r\n]{1,200}$")] | None = None
    """Licence of the predictions, such as `cc-by-4.0`."""
    source: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """Where the input is from and whose it is, as Markdown."""


class Sink(Section):
    """Where the predictions go."""

    uri: str = Field(min_length=1)
    """Root folder of the output; `pipeline/commit/README.md` has its layout."""
    partition: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_.:-]+$"
    )
    """The published piece, `key=value`, usually `date=${date}`; left out: the whole output.
    All partitions of an output have one key."""
    partition_columns: tuple[ColumnName, ...] = ()
    """Pass-through columns, `label` or other predictions that become folders inside the partition,
    outermost first: `<column>=<value>/`, at most 1,000 of them. Needs `partition`."""
    table: Literal["delta"] | None = None
    """`delta`: `predictions/` is a Delta table, too; each publish replaces the partition in it."""
    target_part_mib: Annotated[float, Field(gt=0)] = 128.0
    """A part has about half to one and a half times this size; the last one may be smaller."""
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"
    """Parquet compression of everything that is written."""
    keep_versions: Annotated[int, Field(ge=0)] = 3
    """How many replaced versions of the partition stay for `pipeline rollback`."""
    card: Card = Card()
    """The dataset card."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options (endpoint, credentials); never written to a manifest, report or log."""

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
    16 KiB near 512, of large images fewer, of texts 512 to 2,048, of features up to 524,288 and 48
    MiB, of task `choices` on CPU 32 to 512, of texts that a model writes as many as may have 16,384
    new tokens on CPU, 131,072 on GPU, and fill four batches at most; towards the end of the input
    slices become smaller, but for those of written texts."""
    lease_ttl_s: Annotated[float, Field(ge=1)] = 60.0
    """A run whose lease was not renewed for so long is taken for dead."""
    deadline: str | None = None
    """Stop then, with exit 6: a time of day in UTC, `06:30`, the next one after the start; or a
    time from the start, `90m`, `2h` or `1h30m`."""
    stall_s: Annotated[float, Field(ge=1)] = 1800.0
    """Without any progress for so long the run ends with exit 7 and tells what is in flight. Longer
    than the model takes to load and compile, and than a batch takes, or a token of task
    `generate`."""
    row_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """A worker that so long neither decodes a row nor finishes a batch (task `generate`: a token of
    each row of it, so that long outputs are no hang) hangs, and is ended; the row it hung on is
    then found in child processes, which takes this long twice more, and quarantined as `timeout`.
    Loading and compiling a model do not count."""
    trial_mib: PositiveInt = 4096
    """Memory in MiB that the process which tries a row in `plan` and `doctor` may take, beside four
    times the model's files; beyond, the command ends with exit 2. An actor of a run may take as
    much, or its share of nine tenths of its node's memory if that is more; rows that need more are
    quarantined as `out_of_memory`."""
    single_writer: bool = False
    """Accept a store without create-once: you promise that no other run writes this partition."""
    reuse: Literal["off", "inputs", "content"] = "inputs"
    """Which predictions are carried over from earlier versions of this partition and from earlier
    partitions of the output, if the model and everything else that decides them is the same.
    `inputs`: those of shards (or loose files) whose path, size and version are unchanged; these are
    not read. `content`: also those of other rows whose input has the same bytes, in versions that
    were published with it; to change to it alone is no reason to publish, so the first new version
    finds none. Row ids, URIs and pass-through columns are always those of the new input."""
    reuse_max_age_days: Annotated[float, Field(gt=0)] = 30.0
    """Predictions that are older are computed again."""
    price_per_node_hour: Prices | None = None
    """Price of one node for one hour; the report then says what a million rows cost. Of several
    kinds of nodes a price for each, by the value of any label that Ray has of a node: its group
    (the type in cluster.yaml), accelerator, or an instance type (`{head: 0.1, gpu: 0.8}`)."""

    def price_of(self, nodes: Sequence[Collection[str]]) -> float | None:
        """Return the price of one node for one hour, the mean if nodes differ; None if unknown.

        Args:
            nodes: The values of the labels of each node.
        """
        price = self.price_per_node_hour
        if not isinstance(price, dict):
            return price
        of_nodes = [next((price[x] for x in labels if x in price), None) for labels in nodes]
        known = [node_price for node_price in of_nodes if node_price is not None]
        return fmean(known) if known and len(known) == len(of_nodes) else None

    @field_validator("deadline")
    @classmethod
    def _comes(cls, deadline: str | None) -> str | None:
        if deadline is not None:
            seconds_until(deadline, dt.datetime.now(dt.UTC))
        return deadline


class Metrics(Section):
    """Where the figures of a run go while it works, in the formats of Prometheus."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The driver answers `GET /metrics` on this port, until the run ends."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """The address of `port`; `0.0.0.0` for a Prometheus on another machine. It asks for no
    password."""
    textfile: str | None = None
    """A file, `*.prom`, in the folder of node_exporter's textfile collector; it stays when the run
    has ended. A job each has its own."""

    @field_validator("textfile")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and (not path.endswith(".prom") or "://" in path):
            raise ValueError("node_exporter reads files on its own disk whose names end in .prom")
        return path


class Report(Section):
    """What `report.html` shows of the rows."""

    samples: Annotated[int, Field(ge=0, le=24)] = 8
    """How many of the least certain rows it shows, with small pictures (176 px) or the first 280
    characters of texts. The page stays below 1 MiB; 24 at most. 0: none, and nothing of the input
    is on the page."""


class Job(Section):
    """One offline inference job."""

    source: Source
    transform: Transform = Transform()
    text: Text = Text()
    audio: Audio = Audio()
    model: Model
    resources: Resources = Resources()
    sink: Sink
    gates: Gates = Gates()
    run: Run = Run()
    metrics: Metrics = Metrics()
    report: Report = Report()

    def as_published(self) -> dict[str, Any]:
        """Return the sections that say how rows are predicted, for the manifest.

        Without options of stores, which may hold secrets; local paths from the root.
        """
        given = {
            "mode": "json",
            "exclude_unset": True,
            "exclude": {"storage_options"},
        }
        sections = {
            name: getattr(self, name).model_dump(**given)
            for name in ("model", "transform", "text", "audio")
        }
        for name, fields in _LOCAL_PATHS.items():
            for field in fields:
                path = sections[name].get(field)
                if isinstance(path, str) and "://" not in path:
                    sections[name][field] = os.path.abspath(os.path.expanduser(path))
        return sections

    @model_validator(mode="after")
    def _golden_is_comparable(self) -> Job:
        task = self.model.known_task
        if self.gates.golden is None or task is None:
            return self
        if not registry.load(registry.TASKS, task).has_golden:
            raise ValueError(f"gates.golden has no effect with task {task!r}")
        return self
