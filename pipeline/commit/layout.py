"""The paths of a partition under `sink.uri`, and the names of its files, written and read back."""

from __future__ import annotations

import datetime as dt
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.core.output_folders import CONTROL, PREDICTIONS, QUARANTINE, REPORTS
from pipeline.core.slices import SliceKey

WHOLE_OUTPUT = "all"
CARD = "README.md"
"""The dataset card, directly below `sink.uri`."""
REPORT, REPORT_PAGE = "report.json", "report.html"
SHARDS, PLACES = "shards.parquet", "places.parquet"
"""Files of `Layout.keys`."""
DELTA_LOG = f"{PREDICTIONS}/_delta_log"
COMPACTED = "compacted-"
"""Prefix of the folders of parts that are not published yet."""
_STAGED_NAME = re.compile(r"(?:^|/)(\d{6,})-(\d{9,})-(\d{9,})(z?)-([0-9a-z]+)\.parquet$")
_ORDERED = re.compile(r"\d[\d:._TZ-]*")
"""A partition value with an order: a date or a number."""
_KEYS_FOLDER = re.compile(r"/(\d{6,})-[0-9a-f]{12}$")
_LOG_ENTRY = re.compile(r"(?:^|/)(\d{10})\.json$")
_LEASE = re.compile(r"(?:^|/)(\d{10})\.(json|hb)$")
_PART_NAME = re.compile(r"(?:^|/)part-\d{5,}-(\d{6,})-[0-9a-f]{12}\.parquet$")


def new_run_id(now: dt.datetime) -> str:
    """Return a run id that sorts by time and is unique: 20261124T020000Z-0f3c41a2b3c4d.

    The first five digits of its end are microseconds.
    """
    return f"{now:%Y%m%dT%H%M%SZ}-{now.microsecond:05x}{uuid.uuid4().hex[:8]}"


@dataclass(frozen=True)
class Layout:
    """Paths of one partition, relative to the sink root."""

    partition: str | None

    @classmethod
    def named(cls, name: str) -> Layout:
        """Return the layout of a partition by its name."""
        return cls(None if name == WHOLE_OUTPUT else name)

    @property
    def name(self) -> str:
        """Name of the partition; `all` if the output has no partitions."""
        return self.partition or WHOLE_OUTPUT

    @property
    def predictions(self) -> str:
        """Folder of the published parts."""
        return f"{PREDICTIONS}/{self.partition}" if self.partition else PREDICTIONS

    @property
    def quarantine(self) -> str:
        """Folder of the published quarantine."""
        return f"{QUARANTINE}/{self.partition}" if self.partition else QUARANTINE

    def inside(self, path: str) -> str:
        """Return a part's path without the partition: `predictions/part-...parquet`.

        The folders of partition columns stay: `predictions/label=cat/part-...parquet`.
        """
        for top, folder in ((PREDICTIONS, self.predictions), (QUARANTINE, self.quarantine)):
            if path.startswith(f"{folder}/"):
                return f"{top}/{path.removeprefix(f'{folder}/')}"
        raise ValueError(f"{path}: not a part of {self.name}")

    def outside(self, path: str) -> str:
        """Undo `inside`."""
        top, _, name = path.partition("/")
        return f"{getattr(self, top)}/{name}"

    @property
    def success(self) -> str:
        """Path of the marker of a published partition; empty, or Polars takes it for a part."""
        return f"{self.predictions}/_SUCCESS"

    @property
    def current(self) -> str:
        """Path of the copy of the current manifest, for readers in other languages."""
        return f"{self.control}/current.json"

    @property
    def reports(self) -> str:
        """Folder of the reports of all runs."""
        return f"{REPORTS}/{self.name}"

    def report(self, run_id: str, name: str = REPORT) -> str:
        """Path of a file of the report of a run."""
        return f"{self.reports}/{run_id}/{name}"

    @property
    def control(self) -> str:
        """Folder of plans, staging, leases, log and history."""
        return f"{CONTROL}/{self.name}"

    @property
    def plans(self) -> str:
        """Folder of the stored plans."""
        return f"{self.control}/plan"

    def plan(self, name: str) -> str:
        """Path of a stored plan."""
        return f"{self.plans}/{name}.json"

    @property
    def choices(self) -> str:
        """Folder of the runtimes that runs have chosen for their model."""
        return f"{self.control}/choice"

    def choice(self, fingerprint: str, device: str = "") -> str:
        """Path of the runtime of a model; `device` is `cpu` or `gpu` if it holds for that alone."""
        return f"{self.choices}/{fingerprint}{device and f'-{device}'}.json"

    def tensors(self, fingerprint: str) -> str:
        """Path of the digest of the tensors of a model without a weights file."""
        return f"{self.control}/tensors/{fingerprint}.json"

    @property
    def all_staging(self) -> str:
        """Folder of the staged parts of all plans."""
        return f"{self.control}/staging"

    def staging(self, plan: str) -> str:
        """Folder of the staged parts of a plan, by its name."""
        return f"{self.all_staging}/{plan}"

    def compacted(self, plan: str, version: str) -> str:
        """Folder of final parts before they are published."""
        return f"{self.staging(plan)}/{COMPACTED}{version}"

    @property
    def all_keys(self) -> str:
        """Folder of the keys of all versions: what they know of their rows."""
        return f"{self.control}/keys"

    def keys(self, version: str) -> str:
        """Folder of the keys of a version, which is named as in the names of its parts."""
        return f"{self.all_keys}/{version}"

    @property
    def leases(self) -> str:
        """Folder of the leases."""
        return f"{self.control}/lease"

    def lease(self, epoch: int) -> str:
        """Path of a lease, which is created once."""
        return f"{self.leases}/{epoch:010d}.json"

    def heartbeat(self, epoch: int) -> str:
        """Path of the file that the holder of a lease renews."""
        return f"{self.leases}/{epoch:010d}.hb"

    def stop(self, epoch: int) -> str:
        """Path of the file that asks the holder of a lease to stop."""
        return f"{self.leases}/{epoch:010d}.stop"

    @property
    def log(self) -> str:
        """Folder of the manifests."""
        return f"{self.control}/log"

    def log_entry(self, number: int) -> str:
        """Path of a manifest, which is created once."""
        return f"{self.log}/{number:010d}.json"

    @property
    def all_history(self) -> str:
        """Folder of the parts of all replaced versions."""
        return f"{self.control}/history"

    def history(self, number: int) -> str:
        """Folder of the parts of a replaced version."""
        return f"{self.all_history}/{number:010d}"


def is_partition(name: str) -> bool:
    """Tell whether a folder directly below `_control` is that of a partition."""
    return name == WHOLE_OUTPUT or "=" in name


def log_number(path: str) -> int | None:
    """Return the number of a log entry; None for any other file."""
    match = _LOG_ENTRY.search(path)
    return int(match[1]) if match else None


def lease_epoch(path: str) -> int | None:
    """Return the epoch of a lease or heartbeat; None for any other file."""
    match = _LEASE.search(path)
    return int(match[1]) if match else None


def keys_version(folder: str) -> int | None:
    """Return the number of the version that a folder of keys was written for; None for others."""
    match = _KEYS_FOLDER.search(folder)
    return int(match[1]) if match else None


def first_below(folder: str, path: str) -> str:
    """Return the name directly below a folder on the way to a path."""
    return path.removeprefix(f"{folder}/").partition("/")[0]


def staged_name(key: SliceKey, attempt: str) -> str:
    """Name the part of a slice; `z` after the end marks the last slice of its unit."""
    last = "z" if key.is_last else ""
    return f"{key.unit:06d}-{key.start:09d}-{key.end:09d}{last}-{attempt}.parquet"


def parse_staged_name(path: str) -> SliceKey | None:
    """Return the slice that a staged part is named after; None for any other file."""
    match = _STAGED_NAME.search(path)
    if match is None:
        return None
    unit, start, end, last, _ = match.groups()
    return SliceKey(int(unit), int(start), int(end), is_last=bool(last))


def sorted_name(index: int, attempt: str) -> str:
    """Name a file of rows sorted by value, relative to `Layout.compacted`."""
    return f"sorted/{index:06d}-{attempt}.parquet"


def part_name(index: int, version: str) -> str:
    """Name a published part; `version` is `<log number>-<12 hex digits of the attempt>`."""
    return f"part-{index:05d}-{version}.parquet"


def renumber(path: str, index: int, version: str = "") -> str:
    """Return the path of a published part with another index and, if given, another version."""
    folder, separator, name = path.rpartition("/")
    version = version or name.split("-", 2)[2].removesuffix(".parquet")
    return f"{folder}{separator}{part_name(index, version)}"


def part_target(path: str) -> int | None:
    """Return the number of the version that a part was made for; None for any other file."""
    match = _PART_NAME.search(path)
    return int(match.group(1)) if match else None


def earlier_names(name: str, names: Sequence[str]) -> list[str]:
    """Return the earlier partitions of the same key, the last one first."""
    key, _, value = name.partition("=")
    if not _ORDERED.fullmatch(value):
        return []
    this = _order(value)
    values = [other.partition("=")[2] for other in names if other.startswith(f"{key}=")]
    earlier = [v for v in values if _ORDERED.fullmatch(v) and _order(v) < this]
    return [f"{key}={v}" for v in sorted(earlier, key=_order, reverse=True)]


def partition_order(name: str) -> tuple[bool, tuple[int, ...], str]:
    """Return a key that sorts partitions by date or number; those without either come first."""
    value = name.partition("=")[2]
    is_ordered = _ORDERED.fullmatch(value) is not None
    return is_ordered, _order(value) if is_ordered else (), name


def _order(value: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", value)))
