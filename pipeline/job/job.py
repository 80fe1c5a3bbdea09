"""The job file, and its sections `resources`, `sink`, `run`, `metrics` and `report`.

A job is a frozen value: nothing here uses storage, Ray or torch.
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
from pipeline.job.iceberg_catalog import CatalogEntry, TableName
from pipeline.job.model import Model
from pipeline.job.prompt_places import TEXT_NAME
from pipeline.job.reading.dates import seconds_until
from pipeline.job.section import MAPPING, NUMBER, NotNegative, PositiveInt, Section, by_form
from pipeline.job.source import Source
from pipeline.job.transform import Audio, Text, Transform

_LOCAL_PATHS = {"model": ("path", "weights", "labels"), "text": ("tokenizer",)}
"""Fields that may hold local paths, by section."""
Prices = Annotated[
    Annotated[NotNegative, NUMBER] | Annotated[dict[str, NotNegative], MAPPING],
    by_form("a valid number or an object"),
]
ColumnName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]


class Resources(Section):
    """What one model actor uses, and the number of actors. Defaults fill the cluster."""

    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    """GPUs per actor, at most 1; actors with a fraction share a GPU. 0 runs on the CPU."""
    actors_per_gpu: PositiveInt | None = None
    """Number of actors that share each GPU if `num_gpus` is 1. Default: 1."""
    num_cpus: Annotated[float, Field(gt=0)] | None = None
    """CPU cores, and torch threads, per actor. Default: 1."""
    min_actors: PositiveInt | None = None
    """Smallest size of the actor pool. Default: max_actors."""
    max_actors: PositiveInt | None = None
    """Largest size of the actor pool. Default: as many as fit on the cluster."""
    decode_in: Literal["auto", "actors", "tasks"] = "auto"
    """Where images are decoded and transformed: in the model actors, or in tasks on other cores.
    `auto`: in the actors on CPUs, in tasks beside GPUs."""

    @field_validator("num_gpus")
    @classmethod
    def _on_one(cls, num_gpus: float) -> float:
        if num_gpus > 1:
            raise ValueError(
                f"an actor uses at most one GPU, not {num_gpus:g}: give 1; the number of actors "
                "is that of the GPUs, or max_actors"
            )
        return num_gpus

    @model_validator(mode="after")
    def _ordered(self) -> Resources:
        if self.actors_per_gpu is not None and self.num_gpus != 1:
            raise ValueError(
                f"actors_per_gpu needs num_gpus: 1, not {self.num_gpus:g}; each actor gets a share"
            )
        if self.min_actors and self.max_actors and self.min_actors > self.max_actors:
            raise ValueError(
                f"min_actors ({self.min_actors}) must not exceed max_actors ({self.max_actors})"
            )
        return self


class Card(Section):
    """The dataset card, `README.md` in the output: columns, model, counts, how to read it."""

    write: bool = True
    """Write it at each publication. A `README.md` of your own is never overwritten."""
    license: Annotated[str, Field(pattern=r"^[^\r\n]{1,200}$")] | None = None
    """Licence of the predictions, such as `cc-by-4.0`."""
    source: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """Origin and owner of the input, as Markdown."""


class TableOptions(Section):
    """The table of `sink.table`."""

    catalog: CatalogEntry | None = None
    """For `iceberg`, required: the name of a catalog that pyiceberg is configured for
    (`PYICEBERG_CATALOG__NAME__URI`, `.pyiceberg.yaml`), or
    `{type: sql | rest | glue | hive, uri: ..., warehouse: ...}`."""
    table: TableName | None = None
    """For `iceberg`, required: the namespace and name of the table: `sales.labels`. Both are
    created if they are missing."""
    properties: dict[str, str] = Field(default_factory=dict)
    """Properties that the table gets when it is created, such as `delta.logRetentionDuration` or
    `write.metadata.delete-after-commit.enabled`."""


class Sink(Section):
    """Where the predictions go."""

    uri: str = Field(min_length=1)
    """Root folder of the output; `pipeline/commit/README.md` describes its layout."""
    partition: str | None = Field(
        default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*=[A-Za-z0-9_.:-]+$"
    )
    """The part of the output that is published, `key=value`, usually `date=${date}`. Default: the
    whole output. All partitions of an output have the same key."""
    partition_columns: tuple[ColumnName, ...] = ()
    """Pass-through columns, `label` or other predictions that become folders inside the partition,
    outermost first: `<column>=<value>/`, at most 1,000 folders. Needs `partition`."""
    table: Literal["delta", "iceberg"] | None = None
    """The parts are also those of a table, in which each publication replaces the partition:
    `delta`, a Delta table in `predictions/`, or `iceberg`, a table of the catalog in
    `table_options`."""
    table_options: TableOptions = TableOptions()
    """The table."""
    target_part_mib: Annotated[float, Field(gt=0)] = 128.0
    """Approximate size of a part: half to one and a half times this; the last part may be
    smaller."""
    compression: Literal["zstd", "snappy", "gzip", "none"] = "zstd"
    """Parquet compression of all files."""
    keep_versions: Annotated[int, Field(ge=0)] = 3
    """Number of replaced versions of the partition that are kept for `pipeline rollback`."""
    card: Card = Card()
    """The dataset card."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options (endpoint, credentials); never written to a manifest, report or log."""

    @model_validator(mode="after")
    def _table_is_named(self) -> Sink:
        given = self.table_options.model_fields_set
        if self.table != "iceberg":
            allowed = {"properties"} if self.table else set()
            if unused := sorted(given - allowed):
                where = f"table: {self.table}" if self.table else "no table"
                raise ValueError(f"table_options.{unused[0]} has no effect with {where}")
        elif missing := sorted({"catalog", "table"} - given):
            raise ValueError(f"table: iceberg needs table_options.{missing[0]}")
        return self

    @model_validator(mode="after")
    def _partition_first(self) -> Sink:
        columns = self.partition_columns
        if columns and self.partition is None:
            raise ValueError("partition_columns needs partition, as in date=${date}")
        if len({*columns, (self.partition or "").partition("=")[0]}) < len(columns) + 1:
            raise ValueError("name each partition column once, and not the key of partition")
        return self


class Run(Section):
    """How one run behaves."""

    limit_rows: PositiveInt | None = None
    """Predict only this many rows, the first of the input, to try things out. Tars of a webdataset
    are then read one after the other, so that the first rows are known."""
    slice_rows: PositiveInt | None = None
    """Rows per slice, the unit of resuming. Default: whole batches of about 256 rows; about 512 for
    rows below 16 KiB, fewer for large images, 512 to 2,048 for texts, up to 524,288 and 48 MiB for
    features, 32 to 512 for task `choices` on CPU. For task `generate`, as many rows as have 16,384
    new tokens on CPU or 131,072 on GPU, and at most four batches. Slices become smaller towards the
    end of the input, except for task `generate`."""
    lease_ttl_s: Annotated[float, Field(ge=1)] = 60.0
    """A run that has not renewed its lease for this long is considered dead."""
    deadline: str | None = None
    """When to stop, with exit 6: a time of day in UTC, such as `06:30`, which is the next one after
    the start; or a time after the start, such as `90m`, `2h` or `1h30m`."""
    stall_s: Annotated[float, Field(ge=1)] = 1800.0
    """After this long without progress the run ends with exit 7 and reports what is in flight. It
    must exceed the time to load and compile the model, to predict a batch, and to write a token
    with task `generate`."""
    row_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """A worker that neither decodes a row nor finishes a batch for this long is considered hung,
    and is killed. (With task `generate`, a token of each row counts as progress, so long outputs
    are no hang.) Child processes then find the row, which takes this long twice more, and it is
    quarantined as `timeout`. Time to load and compile a model does not count."""
    trial_mib: PositiveInt = 4096
    """Memory in MiB for the process that tries a row in `plan` and `doctor`, in addition to four
    times the size of the model's files; a process that needs more ends the command with exit 2. An
    actor of a run may use as much, or its share of nine tenths of its node's memory if that is
    more; rows that need more are quarantined as `out_of_memory`."""
    single_writer: bool = False
    """Accept a store without atomic creation: you guarantee that no other run writes this
    partition."""
    reuse: Literal["off", "inputs", "content"] = "inputs"
    """Which predictions are reused from earlier versions of this partition and from earlier
    partitions of the output, if the model and everything else that determines them is unchanged.
    `inputs`: those of shards (or single files) whose path, size and version are unchanged; these
    are not read. `content`: also those of other rows whose input has the same bytes, in versions
    that were published with `content`. Changing to `content` does not by itself cause a
    publication, so the first new version finds none. Row ids, URIs and pass-through columns are
    always those of the new input."""
    reuse_max_age_days: Annotated[float, Field(gt=0)] = 30.0
    """Older predictions are computed again."""
    price_per_node_hour: Prices | None = None
    """Price of one node for one hour, for the cost per million rows in the report. For several
    kinds of nodes, a price for each, by the value of any Ray label of a node: its group (the type
    in cluster.yaml), accelerator, or instance type (`{head: 0.1, gpu: 0.8}`)."""

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
    """Where the metrics of a run are published while it works, in Prometheus formats."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port on which the driver answers `GET /metrics` until the run ends."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """Address of `port`; `0.0.0.0` for a Prometheus on another machine. There is no
    authentication."""
    textfile: str | None = None
    """A `*.prom` file in the folder of node_exporter's textfile collector; it stays after the run.
    Each job needs its own."""

    @field_validator("textfile")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and (not path.endswith(".prom") or "://" in path):
            raise ValueError("node_exporter reads only local files whose names end in .prom")
        return path


class Report(Section):
    """What `report.html` shows of the rows."""

    samples: Annotated[int, Field(ge=0, le=24)] = 8
    """Number of least certain rows shown, at most 24, with thumbnails (176 px) or the first 280
    characters of texts. The page stays below 1 MiB. 0: none, and the page contains nothing of the
    input."""


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
        """Return the sections that determine predictions, for the manifest.

        Storage options, which may hold secrets, are omitted; local paths are made absolute.
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
    def _reads_columns_of_prompt(self) -> Job:
        """Read the columns that the prompt of a text names."""
        source = self.source
        if source.text_column is None:
            return self
        known = (TEXT_NAME, source.text_column)
        columns = tuple(name for name in self.model.prompt_columns if name not in known)
        if "prompt_columns" in source.model_fields_set and source.prompt_columns != columns:
            raise ValueError(
                f"source.prompt_columns: model.prompt and model.messages name "
                f"{', '.join(columns) or 'no other column'} in braces; leave it out"
            )
        if not columns:
            return self
        return self.model_copy(
            update={"source": source.model_copy(update={"prompt_columns": columns})}
        )

    @model_validator(mode="after")
    def _golden_is_comparable(self) -> Job:
        task = self.model.known_task
        if self.gates.golden is None or task is None:
            return self
        if not registry.load(registry.TASKS, task).has_golden:
            raise ValueError(f"gates.golden has no effect with task {task!r}")
        return self
