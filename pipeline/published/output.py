"""`pipeline.open_output`: an output, its partitions, their versions and rows."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.commit.layout import Layout, partition_order
from pipeline.commit.manifest import (
    Manifest,
    locate,
    log_numbers,
    read_manifest,
    require_current,
)
from pipeline.commit.publish import history_numbers
from pipeline.core.errors import JobError
from pipeline.core.printable import num_of
from pipeline.published.dataset import OutputFolder, PublishedParts, Rows
from pipeline.published.describe import choose_partition
from pipeline.published.originals import OriginalFinder, Originals
from pipeline.published.sheets import least_certain, score_column
from pipeline.report.document import Report
from pipeline.report.earlier_reports import load_report
from pipeline.report.showing.printed import facts_html, table_html
from pipeline.storage.store import Store

_LABELS_SHOWN, _PARTITIONS_SHOWN = 10, 40


def open_output(
    url: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    source_options: Mapping[str, Any] | None = None,
) -> Output:
    """Open an output on any store, without its job and without Ray; rows are found by manifests.

    Args:
        url: The root of the sink, or the folder of a partition.
        storage_options: fsspec options of the output.
        source_options: fsspec options of the inputs, for the originals of rows; None: the same.

    Raises:
        JobError: Nothing is published there.
    """
    store, uri_layout = locate(url, dict(storage_options or {}))
    layouts = choose_partition(store, uri_layout, None)
    options = storage_options if source_options is None else source_options
    ordered = sorted(layouts, key=lambda layout: partition_order(layout.name))
    return Output(store, tuple(ordered), dict(options or {}))


class _HasRows(ABC):
    """An object that has predictions, and rows without one."""

    @abstractmethod
    def _parts(self, folder: OutputFolder) -> PublishedParts:
        """Return the parts of one folder."""

    def predictions(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None
    ) -> Rows:
        """Return the predictions; they are read when they are used.

        Args:
            columns: Names of columns; None: all.
            filter: Condition of rows, such as `pyarrow.compute.field("score") < 0.5`.
        """
        return Rows(self._parts("predictions"), None if columns is None else tuple(columns), filter)

    def quarantine(
        self, columns: Sequence[str] | None = None, filter: pc.Expression | None = None
    ) -> Rows:
        """Return the rows without a prediction, with their reasons; see `predictions`."""
        return Rows(self._parts("quarantine"), None if columns is None else tuple(columns), filter)


@dataclass(frozen=True)
class Output(_HasRows):
    """A published output: `output["2026-11-24"]`, `output.latest`, or iterate over partitions.

    Its rows are those of the current versions of all partitions, with the key of the partition as a
    column. Images, texts and the least certain rows are those of the latest partition.
    """

    store: Store
    layouts: tuple[Layout, ...]
    source_options: Mapping[str, Any]

    @property
    def url(self) -> str:
        """The root of the output."""
        return self.store.url("").rstrip("/")

    @cached_property
    def partitions(self) -> dict[str, Partition]:
        """Name -> partition with its current version, ordered by date or number.

        Raises:
            InfraError: A manifest cannot be read.
        """
        return {layout.name: self._opened(layout) for layout in self.layouts}

    def _opened(self, layout: Layout) -> Partition:
        manifest = require_current(self.store, layout)
        return Partition(self.store, layout, manifest, self.source_options)

    @property
    def latest(self) -> Partition:
        """The partition with the last date or number, or else the one published last."""
        last = {}
        for layout in self.layouts:
            is_ordered = partition_order(layout.name)[0]
            last[layout.name.partition("=")[0] if is_ordered else layout.name] = layout
        newest_first = map(self._opened, reversed(last.values()))
        return max(newest_first, key=lambda partition: partition.manifest.created_at)

    @property
    def versions(self) -> dict[str, tuple[int, ...]]:
        """Name of a partition -> numbers of its versions that can be read."""
        return {name: partition.versions for name, partition in self.partitions.items()}

    def __getitem__(self, name: str) -> Partition:
        """Return a partition by its name, `date=2026-11-24`, or by its value alone.

        Raises:
            JobError: It is not published.
        """
        for layout in self.layouts:
            if name in (layout.name, layout.name.partition("=")[2]):
                return self._opened(layout)
        names = ", ".join(layout.name for layout in self.layouts[-5:])
        raise JobError(f"{self.url}: no partition {name}; the last ones are {names}")

    def __iter__(self) -> Iterator[Partition]:
        return map(self._opened, self.layouts)

    def __len__(self) -> int:
        return len(self.layouts)

    def _parts(self, folder: OutputFolder) -> PublishedParts:
        versions = [
            (partition.layout, partition.manifest) for partition in self.partitions.values()
        ]
        return PublishedParts.of(self.store, versions, folder, with_key=True)

    def least_certain(self, number: int = 24) -> pa.Table:
        """Return the least certain rows of the latest partition; see `Partition`."""
        return self.latest.least_certain(number)

    def images(self, rows: Any) -> Originals:
        """Return the originals of rows of the latest partition; see `Partition`."""
        return self.latest.images(rows)

    def texts(self, rows: Any) -> list[Any]:
        """Return the texts of rows of the latest partition; see `Partition`."""
        return self.latest.texts(rows)

    @cached_property
    def _last_shown(self) -> Partition:
        return self.latest

    @cached_property
    def _shown(self) -> tuple[Partition, ...]:
        """The last partitions, latest first, as they were when first shown."""
        others = [layout for layout in self.layouts if layout != self._last_shown.layout]
        shown = others[:-_PARTITIONS_SHOWN:-1]
        return (self._last_shown, *map(self._opened, shown))

    def __repr__(self) -> str:
        first, last = self.layouts[0].name, self.layouts[-1].name
        names = first if first == last else f"{len(self)} partitions, {first} to {last}"
        return f"{self.url}: {names}; {_model(self._last_shown.manifest)}"

    def _repr_html_(self) -> str:
        """Return the last partitions as a table for a notebook; the store is read once."""
        names = ("partition", "version", "published", "rows", "quarantined", "model")
        rows = [
            (
                partition.name,
                partition.number,
                partition.manifest.created_at,
                partition.manifest.num_rows,
                partition.manifest.num_quarantined,
                partition.manifest.model.get("name"),
            )
            for partition in self._shown
        ]
        return table_html(names, rows, repr(self))


@dataclass(frozen=True)
class Partition(_HasRows):
    """One version of a partition; it does not change when a newer one is published."""

    store: Store
    layout: Layout
    manifest: Manifest
    source_options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """`date=2026-11-24`; `all` if the output has no partitions."""
        return self.layout.name

    @property
    def number(self) -> int:
        """Number of the version."""
        return self.manifest.number

    @property
    def versions(self) -> tuple[int, ...]:
        """Numbers of the versions that can be read: the current one and the history."""
        current = log_numbers(self.store, self.layout)[-1:]
        return tuple(sorted({*history_numbers(self.store, self.layout), *current}))

    def version(self, number: int) -> Partition:
        """Return another version of the partition.

        Raises:
            JobError: There is no such version, or it is no longer kept.
        """
        if number not in self.versions:
            there = ", ".join(map(str, self.versions))
            raise JobError(f"{self._where}: version {number} is not kept; there are {there}")
        return replace(self, manifest=read_manifest(self.store, self.layout, number))

    @property
    def _where(self) -> str:
        return f"{self.store.url('')}: partition {self.name}"

    @cached_property
    def report(self) -> Report:
        """The report of the run that published it.

        Raises:
            JobError: There is none, for example after a rollback.
        """
        options = dict(self.store.storage_options)
        return load_report(self.store.url(""), self.name, self.manifest.run_id, options)

    def _parts(self, folder: OutputFolder) -> PublishedParts:
        return PublishedParts.of(self.store, [(self.layout, self.manifest)], folder)

    @property
    def labels(self) -> Counter[str]:
        """Label -> number of rows, by the manifest; empty for tasks without labels."""
        return Counter(self.manifest.distribution.get("labels", {}))

    def least_certain(self, number: int = 24) -> pa.Table:
        """Return the rows with the lowest scores, the lowest first; all columns.

        Raises:
            JobError: The task has no score per row.
        """
        parts = self._parts("predictions")
        if (column := score_column(parts)) is None:
            names = ", ".join(parts.schema.names)
            raise JobError(f"{self._where}: its rows have no score to order them by: {names}")
        return least_certain(parts, column, number)[0]

    def images(self, rows: Any) -> Originals:
        """Return the encoded images that rows were predicted from, read from the input.

        Args:
            rows: A table (pyarrow, pandas or polars) of predictions or of the quarantine with the
                columns `row_id` and `uri`; or ids alone, unless ids are a column of the input.

        Raises:
            JobError: The version does not have the rows, or predicted them from other inputs.
            InfraError: The input has changed, or cannot be read.
        """
        return self._finder.find(rows, "images")

    def texts(self, rows: Any) -> list[Any]:
        """Return the texts that rows were predicted from: pairs as tuples, None if unreadable.

        Arguments and errors: as for `images`.
        """
        return [original.text for original in self._finder.find(rows, "texts")]

    @property
    def _finder(self) -> OriginalFinder:
        return OriginalFinder(self.store, self.layout, self.manifest, self.source_options)

    def __repr__(self) -> str:
        manifest = self.manifest
        return (
            f"{self.name} version {self.number} of {manifest.created_at}: "
            f"{num_of(manifest.num_rows, 'row')}, {manifest.num_quarantined:,} quarantined; "
            f"{_model(manifest)}"
        )

    def _repr_html_(self) -> str:
        """Return facts, labels, gates that did not pass and first rows for a notebook."""
        manifest = self.manifest
        facts = {
            "rows": manifest.num_rows,
            "quarantined": manifest.num_quarantined,
            "carried over": manifest.carried.get("rows"),
            "model": _model(manifest),
            "published": manifest.created_at,
            "run": manifest.run_id,
        }
        pieces = [facts_html(f"{self.name}, version {self.number}", facts)]
        if common := self.labels.most_common(_LABELS_SHOWN):
            pieces.append(table_html(("label", "rows"), common))
        gates = [
            (gate.get("name"), gate.get("status"), gate.get("message"))
            for gate in manifest.gates
            if gate.get("status") not in ("pass", "off")
        ]
        if gates:
            pieces.append(table_html(("gate", "status", "why"), gates))
        if manifest.parts:
            pieces.append(self._first_rows)
        return "".join(pieces)

    @cached_property
    def _first_rows(self) -> str:
        """The first rows as a table for a notebook; the store is read once."""
        return self.predictions()._repr_html_()


def _model(manifest: Manifest) -> str:
    model = manifest.model
    task = model.get("task", {})
    task_name = task.get("kind") if isinstance(task, dict) else None
    parts = [model.get("name"), task_name, model.get("runtime"), model.get("precision")]
    return ", ".join(str(part) for part in parts if part)
