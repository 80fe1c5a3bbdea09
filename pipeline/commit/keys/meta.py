"""The list of a version's key files, with their digests and what its predictions depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.core.arrays import Numbers
from pipeline.core.documents import known_fields
from pipeline.planning.carried import Source
from pipeline.storage.store import Store

FORMAT = 1
HASH = "sha256-128"
"""The first 16 bytes of `core.rows.row_digests`."""
META, UNITS = "meta.json", "units.parquet"

Kind = Literal["inputs", "content"]


class NoKeys(Exception):
    """Nothing can be carried from a version, or looked up in it; the text says why."""


@dataclass(frozen=True)
class About:
    """What the predictions of a version depend on besides its input."""

    predictor_key: str
    row_settings: str
    """Of all that decides the other columns of its rows."""
    kind: Kind
    """Whether rows can be found by their content, too."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Versions of the libraries that decode, tokenise and compute."""


@dataclass(frozen=True)
class KeyFile:
    """One file beside meta.json."""

    sha256: str
    size_bytes: int
    num_rows: int


@dataclass(frozen=True)
class VersionKeys:
    """The keys of one version, as its meta.json has them; plain enough for Ray."""

    store: Store
    source: Source
    folder: str
    about: About
    part_rows: tuple[int, ...]
    """Predictions of each part."""
    files: Mapping[str, KeyFile]
    num_buckets: int
    """How many files hold hashes, a power of two; 0: there are none."""

    @property
    def num_rows(self) -> int:
        """Predictions of the version."""
        return sum(self.part_rows)

    @property
    def told(self) -> str:
        """Which version this is, for messages."""
        return f"version {self.source.number} of {Layout(self.source.partition).name}"

    @cached_property
    def starts(self) -> Numbers:
        """int64 (P,): predictions before each part."""
        return part_starts(self.part_rows)

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            NoKeys: It is missing, or not the one that was written.
            PipelineError: The store failed, which says nothing about the file.
        """
        known = self.files.get(name)
        try:
            data = self.store.read_bytes(f"{self.folder}/{name}")
        except FileNotFoundError:
            raise NoKeys(f"{self.told}: {name} of its keys is missing") from None
        if known is None or hashlib.sha256(data).hexdigest() != known.sha256:
            raise self.damaged(name)
        return data

    def damaged(self, name: str) -> NoKeys:
        """Say that a file is not what was written."""
        return NoKeys(f"{self.told}: {name} of its keys is damaged")


def part_starts(part_rows: Sequence[int]) -> Numbers:
    """Return, int64 (P,), how many rows come before each part."""
    rows = np.array(part_rows, np.int64)
    return np.cumsum(rows) - rows


def bucket_name(bucket: int) -> str:
    """Name the file of a bucket."""
    return f"bucket={bucket:03d}.parquet"


def put_file(store: Store, folder: str, name: str, data: bytes, num_rows: int) -> KeyFile:
    """Write a file of a version's keys."""
    store.put(f"{folder}/{name}", data)
    return KeyFile(hashlib.sha256(data).hexdigest(), len(data), num_rows)


def write_meta(
    store: Store, folder: str, about: About, part_rows: Sequence[int], files: Mapping[str, KeyFile]
) -> dict[str, str]:
    """Write meta.json, the last of the files; return what the manifest says of them."""
    buckets = [name for name in files if name != UNITS]
    document = {
        "format": FORMAT,
        **asdict(about),
        "hash": HASH,
        "num_rows": sum(part_rows),
        "part_rows": list(part_rows),
        "num_buckets": len(buckets),
        "files": {name: asdict(file) for name, file in files.items()},
    }
    data = json.dumps(document, indent=1).encode()
    store.put(f"{folder}/{META}", data)
    return {"folder": folder, "sha256": hashlib.sha256(data).hexdigest()}


def read_keys(store: Store, layout: Layout, manifest: Manifest) -> VersionKeys:
    """Read what a published version knows of its rows; its other files are read when needed.

    Raises:
        NoKeys: It has none, or they cannot be trusted.
        PipelineError: The store failed.
    """
    source = Source(layout.partition, manifest.number, manifest.token)
    told = f"version {manifest.number} of {layout.name}"
    if not manifest.keys:
        raise NoKeys(f"{told} has no keys")
    folder = manifest.keys["folder"]
    try:
        data = store.read_bytes(f"{folder}/{META}")
    except FileNotFoundError:
        raise NoKeys(f"{told}: its keys are missing") from None
    if hashlib.sha256(data).hexdigest() != manifest.keys["sha256"]:
        raise NoKeys(f"{told}: {META} of its keys is damaged")
    document = json.loads(data)
    if document["format"] > FORMAT or document["hash"] != HASH:
        raise NoKeys(f"{told}: its keys were written by a newer version of the pipeline")
    part_rows = tuple(document["part_rows"])
    if part_rows != tuple(part.num_rows for part in manifest.parts):
        raise NoKeys(f"{told}: its keys are of other parts")
    return VersionKeys(
        store,
        source,
        folder,
        About(**known_fields(About, document)),
        part_rows,
        {name: KeyFile(**known_fields(KeyFile, f)) for name, f in document["files"].items()},
        document["num_buckets"],
    )
