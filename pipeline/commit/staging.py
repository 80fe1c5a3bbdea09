"""Stage slices: one Parquet part per slice, whose put is the commit of the slice.

The footer of a part carries the counters of its rows, so that figures survive crashes and are never
counted twice. Names are unique per attempt: a late or repeated attempt only adds an object.
"""

from __future__ import annotations

import io
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.commit.layout import COMPACTED, parse_staged_name, staged_name
from pipeline.commit.parts.part_file import DamagedPart, checksums, open_part, write_file
from pipeline.commit.parts.part_writer import META_PREFIX, repetitive_columns
from pipeline.core.arrays import as_array
from pipeline.core.backoff import retries_taken
from pipeline.core.documents import known_fields
from pipeline.core.errors import InfraError, PipelineError
from pipeline.core.failures import Failure, Reason, causes_of, failure_columns, failures_of
from pipeline.core.figures import WRITE, Counters, SliceFigures, StageCounters, add
from pipeline.core.histograms import measure_numbers
from pipeline.core.hive_paths import without_folder
from pipeline.core.rows_set_aside import checked_pairs, is_taken_over, num_computed, put_back
from pipeline.core.schema import ERROR, LABEL, SOURCE
from pipeline.core.slices import SliceKey
from pipeline.process.failpoints import failpoint
from pipeline.storage.errors import listed_files
from pipeline.storage.store import Store, StoredFile

log = logging.getLogger(__name__)
_SLICE_META = META_PREFIX + "slice"
_FOOTER_THREADS = 16
_OTHERS = 256
"""The most known rows of a slice that tell how large its numbers usually are."""


@dataclass(frozen=True)
class StagedSlice:
    """The figures of a committed slice; they travel in its footer and to the driver."""

    run_id: str
    num_rows: int
    name: str = ""
    """Name of its file; the footer does not have it."""
    reasons: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    counters: Counters = field(default_factory=dict)
    numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Column -> JSON form of `histograms.Numbers`."""
    causes: list[dict[str, Any]] = field(default_factory=list)
    """JSON form of the most frequent `causes.Cause`."""
    num_carried: int = 0
    """Rows whose predictions are carried from earlier versions."""
    num_kept: int = 0
    """Rows that failed in the version that is retried, and are not retried."""
    sources: list[str] = field(default_factory=list)
    """`Version.source` of these versions."""
    computed_labels: dict[str, int] = field(default_factory=dict)
    """Labels of the computed rows if rows are carried, otherwise empty."""
    computed_numbers: dict[str, dict[str, Any]] = field(default_factory=dict)
    num_checked: int = 0
    """Known rows that were computed as a check."""
    differing: list[str] = field(default_factory=list)
    """A line for each checked row that differs."""

    @property
    def figures(self) -> SliceFigures:
        """The counters as figures."""
        return SliceFigures.from_json(self.counters)

    @property
    def num_quarantined(self) -> int:
        """Rows without a prediction, over all reasons."""
        return sum(self.reasons.values())

    def is_without_predictions_by(self, reason: Reason) -> bool:
        """Tell whether no row has a prediction, and at least one failed for this reason."""
        return self.num_quarantined == self.num_rows and bool(self.reasons.get(reason.value))

    def to_json(self) -> str:
        """Return the text in the footer of a staged part."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> StagedSlice:
        """Undo `to_json`; fields of newer versions of the package are ignored."""
        return cls(**known_fields(cls, json.loads(text)))


class CheckRows(Protocol):
    """Compares known rows with the same rows computed again; can be pickled."""

    def __call__(self, known: pa.Table, computed: pa.Table, others: pa.Table) -> Checked:
        """Compare N staged rows; `others` are more known rows, which tell the usual size."""
        ...


class Checked(NamedTuple):
    """The result of a comparison."""

    num_rows: int
    differing: list[str]


@dataclass(frozen=True)
class StagingWriter:
    """Writes any slice of one run; can be pickled."""

    store: Store
    folder: str
    run_id: str
    compression: str
    metadata: Mapping[str, str]
    """File metadata of every part: fingerprint, model, versions; no secrets."""
    counted: tuple[str, ...] = ()
    """Columns whose values are counted: `task.measured_columns`."""
    folders: tuple[str, ...] = ()
    """Columns whose values become folders: `sink.partition_columns`."""
    check: CheckRows | None = None
    """Compares known rows that were computed."""

    def write(
        self, key: SliceKey, counters: Counters, rows: pa.Table, aside: pa.Table | None = None
    ) -> StagedSlice:
        """Commit one slice; rows whose values cannot name folders are quarantined.

        Args:
            key: The slice.
            counters: Its figures so far.
            rows: Predictions and failures, as `staged_schema`, without rows that were set aside.
            aside: The table of `core.rows_set_aside`; None if no rows were set aside.

        Returns:
            The content of the footer, plus seconds and retries of the put itself.

        Raises:
            InfraError: The number of rows is wrong (nothing is written), or the store failed.
        """
        expected = key.num_rows if aside is None else num_computed(aside)
        if rows.num_rows != expected:
            raise InfraError(
                f"slice {key.unit}-{key.start}-{key.end}: has {rows.num_rows} rows, "
                f"expected {expected}; nothing was written, run again"
            )
        started = perf_counter()
        carried: dict[str, Any] = {}
        computed = rows
        if aside is not None:
            rows = put_back(rows, aside)
            carried = self._carried(computed, aside)
        rows = quarantine_without_folder(rows, self.folders)
        reasons = _count(rows.column(ERROR))
        labels, numbers = self._measure(rows)
        buffer = io.BytesIO()
        options = {**encodings(rows), "compression": self.compression, "write_statistics": False}
        with write_file(buffer, rows.schema, **options) as writer:
            writer.write_table(rows)
            written = StageCounters(
                rows.num_rows, rows.num_rows, 0, rows.nbytes, buffer.tell(),
                perf_counter() - started,
            )  # fmt: skip
            add(counters, WRITE, written)
            staged = StagedSlice(
                self.run_id,
                rows.num_rows,
                reasons=dict(reasons),
                labels=labels,
                counters=counters,
                numbers=numbers,
                causes=[asdict(cause) for cause in causes_of(rows)],
                **carried,
            )
            writer.add_key_value_metadata({**self.metadata, _SLICE_META: staged.to_json()})
        data = buffer.getvalue()
        name = staged_name(key, f"{uuid.uuid4().hex[:12]}{checksums(data)}")
        encoded, retries = perf_counter(), retries_taken()
        self.store.put(f"{self.folder}/{name}", data)
        failpoint("slice_put")
        put_s, retries = perf_counter() - encoded, retries_taken() - retries
        add(counters, WRITE, StageCounters(busy_s=put_s, retries=retries))
        return replace(staged, name=name)

    def _carried(self, computed: pa.Table, aside: pa.Table) -> dict[str, Any]:
        """Return the fields of `StagedSlice` about rows that earlier versions know."""
        is_taken = is_taken_over(computed, aside)
        if not is_taken.any() and aside.column(SOURCE).null_count == aside.num_rows:
            return {}
        is_good = np.asarray(aside.column(ERROR).is_null())
        labels, numbers = self._measure(computed)
        known, recomputed = checked_pairs(computed, aside)
        checked = Checked(0, [])
        if self.check is not None and known.num_rows:
            others = aside.filter(pa.array(is_taken)).slice(0, _OTHERS).select(known.column_names)
            checked = self.check(known, recomputed, others)
        return {
            "num_carried": int((is_taken & is_good).sum()),
            "num_kept": int((is_taken & ~is_good).sum()),
            "sources": sorted(aside.column(SOURCE).drop_null().unique().to_pylist()),
            "computed_labels": labels,
            "computed_numbers": numbers,
            "num_checked": checked.num_rows,
            "differing": checked.differing,
        }

    def _measure(self, rows: pa.Table) -> tuple[dict[str, int], dict[str, Any]]:
        numbers = measure_numbers(rows, self.counted).items()
        return dict(count_labels(rows, self.counted)), {k: v.to_dict() for k, v in numbers}


def quarantine_without_folder(rows: pa.Table, folders: Sequence[str]) -> pa.Table:
    """Fail predicted rows with a value that cannot name a folder; their columns become null.

    Readers do so for pass-through columns. Values from a model or its post-processing are first
    known here; at publication one such value would refuse all rows.
    """
    messages: dict[int, str] = {}
    for name in folders:
        messages = {**without_folder(name, as_array(rows.column(name))), **messages}
    failures = failures_of(rows) if messages else []
    messages = {row: message for row, message in messages.items() if failures[row] is None}
    if not messages:
        return rows
    kept = pa.array([None if row in messages else row for row in range(rows.num_rows)], pa.int64())
    for row, message in messages.items():
        failures[row] = Failure(Reason.BAD_SCHEMA, WRITE, message)
    columns = {
        field.name: rows.column(field.name).take(kept)
        if field.nullable
        else rows.column(field.name)
        for field in rows.schema
    }
    return pa.table({**columns, **failure_columns(failures)}, schema=rows.schema)


def encodings(rows: pa.Table) -> dict[str, Any]:
    """Choose how the columns of a slice are encoded, as arguments of a Parquet writer.

    Integers that hardly repeat are stored as differences, which takes a quarter of the time. Only
    this package reads slices; not all readers of published parts know this encoding.
    """
    repetitive = repetitive_columns(rows)
    differences = {
        field.name: "DELTA_BINARY_PACKED"
        for field in rows.schema
        if pa.types.is_integer(field.type) and field.name not in repetitive
    }
    return {"use_dictionary": repetitive, "column_encoding": differences or None}


def _count(column: pa.ChunkedArray) -> Counter[str]:
    """Count the values of a text column without its nulls."""
    counted = pc.value_counts(column.drop_null())
    return Counter({str(entry["values"]): entry["counts"].as_py() for entry in counted})


def count_labels(rows: pa.Table, counted: Sequence[str]) -> Counter[str]:
    """Count the labels of rows, or else the texts and the labels of entries in counted columns."""
    if LABEL in rows.column_names and pa.types.is_string(rows.column(LABEL).type):
        return _count(rows.column(LABEL))
    counts: Counter[str] = Counter()
    for name in counted:
        column_type = rows.column(name).type
        if pa.types.is_string(column_type):
            counts.update(_count(rows.column(name)))
        elif pa.types.is_list(column_type) and pa.types.is_struct(column_type.value_type):
            entries = pc.list_flatten(rows.column(name))
            counts.update(pc.struct_field(entries, LABEL).to_pylist())
    return counts


def list_staged(store: Store, folder: str) -> dict[SliceKey, StoredFile]:
    """List the committed slices in a folder; of two attempts the first by name wins."""
    winners: dict[SliceKey, StoredFile] = {}
    for file in store.list_files(folder):
        key = parse_staged_name(file.path)
        if key is not None:
            winners.setdefault(key, file)  # the listing is sorted by path
    return winners


def discard_staged(store: Store, folder: str, compacted: str | None = None) -> None:
    """Delete the slices of a published plan, and its parts before they were published.

    Parts of other runs stay, as such a run may be suspended before its publication.
    `collect_garbage` deletes what could not be deleted here.

    Args:
        store: The output.
        folder: The staging folder of the plan.
        compacted: The folder in it of the parts that are published now.
    """
    try:
        files = [file.path for file in store.list_files(folder)]
        others = [p for p in files if p.startswith(f"{folder}/{COMPACTED}")]
        published = [p for p in others if compacted and p.startswith(f"{compacted}/")]
        store.delete([*{*files} - {*others}, *published])
    except PipelineError as error:
        log.warning("staging is not deleted; `pipeline gc` deletes it: %s", error)
    failpoint("unstaged")


def read_footer(store: Store, path: str) -> StagedSlice:
    """Read the footer of a staged part.

    Raises:
        DamagedPart: Its bytes are not those that were written.
        InfraError: It has been deleted since it was listed.
    """
    with listed_files(), open_part(store, path) as part:
        return staged_of(part, path)


def read_footers(store: Store, paths: Sequence[str]) -> Iterator[StagedSlice | None]:
    """Read the footers of staged parts, in order; None for a damaged part."""

    def read(path: str) -> StagedSlice | None:
        try:
            return read_footer(store, path)
        except DamagedPart as error:
            log.warning("%s; its slice is computed again", error)
            return None

    with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        yield from pool.map(read, paths)


def staged_of(part: pq.ParquetFile, path: str) -> StagedSlice:
    """Return the `StagedSlice` in the footer of an open part.

    Raises:
        pa.ArrowInvalid: There is none.
    """
    text = (part.metadata.metadata or {}).get(_SLICE_META.encode())
    if text is None:
        raise pa.ArrowInvalid("it is not a staged part of this package")
    return replace(StagedSlice.from_json(text), name=path.rpartition("/")[2])
