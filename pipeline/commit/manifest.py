"""The manifest of a published version, and how readers find it: output, partition, log entry.

The entries of `_control/<partition>/log/` are create-once; the highest number is current. A
reader that goes by the manifest sees exactly one whole version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from pipeline.commit.layout import REPORT, WHOLE_OUTPUT, Layout, log_number
from pipeline.core.documents import known_fields, sealed, unsealed
from pipeline.core.errors import InfraError, JobError
from pipeline.core.output_folders import CONTROL, PREDICTIONS
from pipeline.core.printable import clean_message
from pipeline.storage.store import Store

log = logging.getLogger(__name__)
MANIFEST_VERSION = 1
_NAMES_SHOWN = 5
_THREADS = 16


class NotAManifest(InfraError):
    """A log entry is damaged: it holds no manifest."""


@dataclass(frozen=True)
class Part:
    """One published Parquet file; the path is relative to `sink.uri`."""

    path: str
    num_rows: int
    size_bytes: int
    sha256: str
    row_id_hash: str = ""
    """Sum of the hashes of its row ids; see `Manifest.row_id_hash`."""


@dataclass(frozen=True)
class Manifest:
    """What one published version consists of, and how it was made."""

    number: int
    kind: str
    """`publish`; `rollback` to an earlier version; `unknown` if its log entry is damaged."""
    partition: str
    fingerprint: str
    run_id: str
    token: str
    created_at: str
    num_rows: int
    num_predicted: int
    num_quarantined: int
    num_unreadable_shards: int
    """Shards that could not be opened; each counts as one quarantined row."""
    row_id_hash: str
    """Sum of the hashes of all row ids, predicted and quarantined; the order has no effect."""
    parts: tuple[Part, ...]
    quarantine_parts: tuple[Part, ...]
    model: dict[str, Any]
    gates: tuple[dict[str, Any], ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)
    """Device -> rows that it computed for this version."""
    restored_from: int | None = None
    partition_columns: dict[str, str] = field(default_factory=dict)
    """Columns that are folders inside the partition, with their types; outermost first."""
    plan: str | None = None
    """Name of the stored plan of its rows; None: `fingerprint` (versions of plan format 1)."""
    distribution: dict[str, Any] = field(default_factory=dict)
    """JSON form of `histograms.Distribution`; later partitions are compared with it."""
    fingerprint_parts: dict[str, Any] = field(default_factory=dict)
    """The parts of the fingerprint, as in the plan."""
    ctimes_sha256: str = ""
    """Digest of the ctimes of the shards that were read, as in the plan; empty if unknown."""
    skipped: dict[str, Any] = field(default_factory=dict)
    """JSON form of `skipped.Skipped`: files below the source that are no input."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows, and shards that were not opened, for which `source.where` is not true; {} without."""
    keys: dict[str, str] = field(default_factory=dict)
    """Where the keys are that let later versions carry its rows: `folder`, which may be that of an
    equal version, and the `sha256` of shards.parquet; {} if there are none."""
    carried: dict[str, Any] = field(default_factory=dict)
    """Carried rows, as in the section `carried` of the report; {} if there are none."""
    source: dict[str, Any] = field(default_factory=dict)
    """How the rows were read, so that the original of a row can be found: the section `source` of
    the job without places and options of stores."""
    sections: dict[str, Any] = field(default_factory=dict)
    """How the rows were predicted, so that they can be predicted again: the sections `model`,
    `transform` and `text` of the job, by `Job.as_published`."""
    card: dict[str, Any] = field(default_factory=dict)
    """Texts of the dataset card: `license`, `source` and `input`, each a string or None; {} if no
    card is written."""
    table: dict[str, Any] = field(default_factory=dict)
    """The table that names the parts, too: `table` and `table_options` of the job's section `sink`;
    {} if there is none."""
    version: int = MANIFEST_VERSION

    @property
    def plan_name(self) -> str:
        """Name of the stored plan of its rows."""
        return self.plan or self.fingerprint

    @property
    def is_known(self) -> bool:
        """Whether its log entry could be read; otherwise only its number is known."""
        return self.kind != "unknown"

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts of predictions and quarantine."""
        return self.parts + self.quarantine_parts

    def to_json(self) -> bytes:
        """Return the bytes of the log entry."""
        return sealed(asdict(self))

    def is_of(self, fingerprint: str, partition_columns: Sequence[str]) -> bool:
        """Tell whether a run of this fingerprint and these columns would publish the same."""
        return self.fingerprint == fingerprint and list(self.partition_columns) == list(
            partition_columns
        )

    @classmethod
    def from_json(cls, data: bytes, where: str) -> Manifest:
        """Read a manifest.

        Raises:
            NotAManifest: The bytes are damaged.
            JobError: A newer version of the pipeline wrote it.
        """
        try:
            document = unsealed(data)
            if document["version"] > MANIFEST_VERSION:
                raise JobError(f"{where}: written by a newer version; upgrade this one")
            for name in ("parts", "quarantine_parts"):
                document[name] = tuple(Part(**known_fields(Part, p)) for p in document[name])
            document["gates"] = tuple(document["gates"])
            return cls(**known_fields(cls, document))
        except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise NotAManifest(f"{where}: not a manifest: {error}") from None


def log_numbers(store: Store, layout: Layout) -> list[int]:
    """List the numbers of the log entries, ascending."""
    numbers = (log_number(file.path) for file in store.list_files(layout.log))
    return sorted(number for number in numbers if number is not None)


def unexpected_files_in_log(store: Store, layout: Layout) -> list[str]:
    """List the files in the log folder that are not log entries."""
    paths = [file.path for file in store.list_files(layout.log)]
    return [path for path in paths if log_number(path) is None]


def read_manifest(store: Store, layout: Layout, number: int) -> Manifest:
    """Read one log entry."""
    path = layout.log_entry(number)
    return Manifest.from_json(store.read_bytes(path), store.url(path))


def current_manifest(store: Store, layout: Layout) -> Manifest | None:
    """Return the manifest that is current, or None if nothing is published."""
    numbers = log_numbers(store, layout)
    return read_manifest(store, layout, numbers[-1]) if numbers else None


def read_or_unknown(store: Store, layout: Layout, number: int) -> Manifest:
    """Read one log entry; a damaged one gives a warning and a manifest without parts."""
    try:
        return read_manifest(store, layout, number)
    except NotAManifest as error:
        log.warning("%s; the parts of that version are unknown", error)
    return Manifest(
        number, "unknown", layout.name, "", "", "", "", 0, 0, 0, 0, "", (), (), model={}
    )  # fmt: skip


def current_or_unknown(store: Store, layout: Layout) -> Manifest | None:
    """Return the current manifest, or None; for a damaged one a manifest without parts."""
    numbers = log_numbers(store, layout)
    return read_or_unknown(store, layout, numbers[-1]) if numbers else None


def restore_entry(store: Store, layout: Layout) -> None:
    """Restore the newest log entry from its copy, if the entry is damaged and the copy is not.

    The caller holds the lease.
    """
    for number in log_numbers(store, layout)[-1:]:
        path = layout.log_entry(number)
        try:
            Manifest.from_json(store.read_bytes(path), path)
        except NotAManifest:
            with contextlib.suppress(NotAManifest, FileNotFoundError):
                copy = store.read_bytes(layout.current)
                if Manifest.from_json(copy, layout.current).number == number:
                    log.warning("%s: is damaged; restored from its copy", store.url(path))
                    store.put(path, copy)


def kept_manifests(
    store: Store, layout: Layout, kept: Collection[int], current: int
) -> list[Manifest]:
    """Return the manifests of the versions that are current or in the history.

    Args:
        kept: The numbers of the versions in the history.
        current: The number of the current version; 0: nothing is published.
    """
    numbers = log_numbers(store, layout)
    return [read_or_unknown(store, layout, n) for n in numbers if n in kept or n >= current]


def list_partitions(store: Store) -> list[Layout]:
    """List the partitions of an output that have a published version."""
    names = sorted(store.list_folders(CONTROL))
    layouts = [Layout.named(name) for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:  # only the logs: staging may have many files
        numbers = pool.map(partial(log_numbers, store), layouts)
        return [layout for layout, entries in zip(layouts, numbers, strict=True) if entries]


def require_one_key(store: Store, layout: Layout) -> None:
    """Refuse a partition whose key differs from that of published ones.

    Readers of the folder `predictions/` would get the rows of both.

    Raises:
        JobError: The output has partitions of another key.
    """
    key, names = _key(layout.name), store.list_folders(CONTROL)
    others = [name for name in names if _key(name) != key and (_key(name) or name == WHOLE_OUTPUT)]
    other = next((name for name in others if log_numbers(store, Layout.named(name))), None)
    if other is None:
        return
    has = f"has partitions by `{_key(other)}` ({other})" if _key(other) else "has no partitions"
    this = f"the job's is {layout.name}" if key else "the job has no sink.partition"
    raise JobError(
        f"sink.uri = {store.url('')}: the output {has}, but {this}; readers of the "
        "folder would get the rows of both: use another sink.uri"
    )


def _key(name: str) -> str:
    return name.rpartition("=")[0]


def not_published(store: Store, layout: Layout) -> JobError:
    """Return the error of a partition that is not published: names its last run, or others."""
    problem = f"{store.url('')}: partition {layout.name} is not published"
    last = _last_run(store, layout)
    if last:
        return JobError(f"{problem}; {last}")
    names = [known.name for known in list_partitions(store)]
    if not names:
        return JobError(f"{problem}: nothing is published there")
    shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    return JobError(f"{problem}; {len(names)} are, name one of them: {shown}")


def _last_run(store: Store, layout: Layout) -> str:
    """Return how the last run of a partition ended, and the command that shows it; or empty."""
    paths = (PurePosixPath(file.path) for file in store.list_files(layout.reports))
    runs = [path.parent.name for path in paths if path.name == REPORT]
    if not runs:
        return ""
    run_id = max(runs)
    try:
        report = json.loads(store.read_bytes(layout.report(run_id)))
        ended, gates = str(report["status"]), report["gates"]
        failed = [str(gate["name"]) for gate in gates if gate["status"] == "fail"]
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return ""
    why = f": {', '.join(failed)}" if failed else ""
    verb = "" if ended == "failed" else "was "
    return clean_message(
        f"its last run, {run_id}, {verb}{ended}{why}; "
        f"pipeline report {store.url('')} --partition {layout.name}"
    )


def locate(
    uri: str | os.PathLike[str], storage_options: dict[str, Any] | None = None
) -> tuple[Store, Layout | None]:
    """Find the output that a URI points into, and the partition if it names one.

    Accepts the sink's root, also if it is called `predictions`, a partition's folder under
    `predictions/`, and the partition's name right below the root.

    Raises:
        JobError: It is not a path or URI.
    """
    text = os.fspath(uri) if isinstance(uri, str | os.PathLike) else uri
    if not isinstance(text, str) or "\0" in text:
        raise JobError(f"{clean_message(repr(uri), 80)}: not a path or URI of an output")
    trimmed = text.rstrip("/")
    head, separator, tail = trimmed.rpartition(f"/{PREDICTIONS}")
    store = Store(trimmed, storage_options or {})
    is_root = separator and not tail and store.list_folders(CONTROL)
    if separator and not is_root and (not tail or (tail.startswith("/") and "/" not in tail[1:])):
        return Store(head, storage_options or {}), Layout(tail[1:] or None)
    root, _, name = trimmed.rpartition("/")
    if "=" in name and not store.list_folders(CONTROL):
        output = Store(root or ".", storage_options or {})
        if name in output.list_folders(CONTROL):
            return output, Layout(name)
    return store, None


def require_current(store: Store, layout: Layout) -> Manifest:
    """Return the manifest that is current.

    Raises:
        JobError: Nothing is published; the message names what there is instead.
    """
    manifest = current_manifest(store, layout)
    if manifest is None:
        raise not_published(store, layout)
    return manifest
