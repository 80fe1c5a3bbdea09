"""What the holder of a lease says of its run, in the file by whose renewal the lease lives.

Anybody who can read the output sees by it what runs, where, how far it is and how it ended.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields
from typing import Any

from pipeline.core.documents import known_fields
from pipeline.process.identity import ProcessId

_TYPES: dict[str, Any] = {
    "str": str,
    "bool": bool,
    "int": int,
    "float": int | float,
    "list[str]": list,
    "None": type(None),
}


@dataclass(frozen=True)
class Heartbeat:
    """One renewal of a lease. What is unknown is None, or empty; times are ISO 8601, UTC."""

    run_id: str = ""
    released: bool = False
    """The run has given the lease back: it has ended."""
    host: str = ""
    machine: str = ""
    pid: int = 0
    pid_started: float = 0.0
    ttl_s: float = 60.0
    written_at: str | None = None
    job: str | None = None
    """Name of the job file, without its ending."""
    fingerprint: str | None = None
    attempt: int | None = None
    """1 for the first lease of this fingerprint, counted as long as no other came between."""
    started_at: str | None = None
    phase: str | None = None
    rows: int | None = None
    rows_done: int | None = None
    """Rows of committed slices, of this run and of earlier ones."""
    rows_quarantined: int | None = None
    slices: int | None = None
    slices_done: int | None = None
    rows_per_s: float | None = None
    """Of the last minute."""
    eta_s: float | None = None
    cost: float | None = None
    """So far, in the currency of `run.price_per_node_hour`."""
    exit_code: int | None = None
    """Once it is released."""
    error: str | None = None
    failed_gates: list[str] | None = None

    @classmethod
    def from_json(cls, data: bytes) -> Heartbeat:
        """Read a heartbeat of any version; what cannot be understood is left out."""
        try:
            document = known_fields(cls, json.loads(data))
        except (ValueError, TypeError, RecursionError):
            return cls()
        types = {field.name: str(field.type) for field in fields(cls)}
        return cls(**{
            name: value
            for name, value in document.items()
            if any(isinstance(value, _TYPES[type_name]) for type_name in types[name].split(" | "))
            and not (isinstance(value, float) and not math.isfinite(value))
        })  # fmt: skip

    @property
    def process(self) -> ProcessId:
        """Return the process that holds the lease."""
        return ProcessId(self.host, self.machine, self.pid, self.pid_started)
