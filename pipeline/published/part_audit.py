"""What the parts of a version really hold: bytes, schema and the hashes of their row ids.

Parts are streamed: of every row only the 64-bit hash of its id stays in memory. The ids
themselves are read again only for the hashes that a caller names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.manifest import Part
from pipeline.commit.parts.part_file import DamagedPart, open_part, read_batches
from pipeline.commit.parts.row_ids import hash_ids
from pipeline.core.errors import PipelineError
from pipeline.core.schema import ROW_ID
from pipeline.storage.store import Store

BATCH_ROWS = 65_536
_CHUNK_BYTES = 8 * 2**20

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class AuditedPart:
    """What one part really is; `problem` says why its rows cannot be read."""

    part: Part
    size_bytes: int = 0
    sha256: str = ""
    schema: pa.Schema | None = None
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    problem: str = ""


def audit_part(store: Store, part: Part) -> AuditedPart:
    """Read a part, whatever is wrong with it.

    Raises:
        PipelineError: The store failed, which proves nothing.
    """
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with store.open(part.path) as handle:
            while chunk := handle.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
        with open_part(store, part.path) as parquet:
            batches = parquet.iter_batches(batch_size=BATCH_ROWS, columns=[ROW_ID])
            hashes = [hash_ids(batch.column(0)) for batch in batches]
            schema = parquet.schema_arrow
    except FileNotFoundError:
        return AuditedPart(part, problem="is missing")
    except Exception as error:
        if isinstance(error, PipelineError) and not isinstance(error, DamagedPart):
            raise  # otherwise changed bytes may surface as anything
        return AuditedPart(part, size_bytes, digest.hexdigest(), problem=f"cannot be read: {error}")
    return AuditedPart(part, size_bytes, digest.hexdigest(), schema, join(hashes))


def join(hashes: Sequence[Hashes]) -> Hashes:
    """Put hashes of several parts into one array, uint64 (N,)."""
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def ids_of(store: Store, audited: AuditedPart, wanted: Hashes) -> Iterator[str]:
    """Yield the row ids of a part whose hashes are among `wanted`, uint64 (M,), in its order."""
    if not np.isin(audited.hashes, wanted).any():
        return
    for batch in read_batches(store, audited.part.path, [ROW_ID], BATCH_ROWS):
        ids = batch.column(0)
        yield from ids.filter(pa.array(np.isin(hash_ids(ids), wanted))).to_pylist()
