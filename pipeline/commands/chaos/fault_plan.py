"""Which requests to a store `pipeline chaos` disturbs, and how: decided by a seed.

Off unless the environment names `inject_faults` and the scratch folder of that command. Then what
lies in this folder is disturbed, and what lies anywhere else can be read but not written: no job of
the user's can be disturbed or published by accident.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path

from pipeline.core.environment import STORE_WRAPPER
from pipeline.core.errors import JobError

_INJECTION = "pipeline.commands.chaos.fault_injection:inject_faults"
_SETTINGS, _INJECTED = "chaos.json", "injected.jsonl"
_MAX_IN_A_ROW = 2
"""At the same file; the retries of a run stand more."""
_SLOW_S = (0.1, 0.5)
# What differs from run to run: run ids, fingerprints, tokens, attempts and versions.
_RANDOM = re.compile(
    r"\d{8}T\d{6}Z-[0-9a-f]{8}|(?<![0-9a-f])(?:[0-9a-f]{64}|[0-9a-f]{32}|[0-9a-f]{12})(?![0-9a-f])"
)


class StoreFault(StrEnum):
    """What a store does to a request."""

    REFUSE = "refuse"
    """It answers 503 SlowDown; nothing is done."""
    SLOW = "slow"
    CUT = "cut"
    """The connection breaks half way: half of the bytes are read, nothing is written."""
    LOSE = "lose"
    """What was to be written is, but the answer never comes."""


WRITES = frozenset(["put", "put_file", "create", "copy", "delete"])
_READ_PCT = {StoreFault.REFUSE: 3.0, StoreFault.CUT: 3.0, StoreFault.SLOW: 4.0}
_WRITE_PCT = {
    StoreFault.REFUSE: 8.0,
    StoreFault.CUT: 8.0,
    StoreFault.LOSE: 16.0,
    StoreFault.SLOW: 40.0,
}


@dataclass(frozen=True)
class Injected:
    """One fault that was injected."""

    fault: StoreFault
    operation: str
    path: str
    """Below the scratch folder, without what differs from run to run."""
    delay_s: float = 0.0


@dataclass(frozen=True)
class StoreChaos:
    """The faults of one scratch folder; `next_fault` counts the requests of this process."""

    folder: str
    seed: int
    _seen: Counter[tuple[str, str]] = field(default_factory=Counter)

    def holds(self, root: str) -> bool:
        """Tell whether the store at `root`, a normal URI, lies in the scratch folder."""
        return "://" not in root and Path(root).is_relative_to(self.folder)

    def decide(self, operation: str, path: str) -> list[Injected]:
        """Return what happens to the first requests for a file, in turn, by the seed alone."""
        dice = random.Random(f"{self.seed} {operation} {path}")  # noqa: S311  # hides nothing
        at = dice.uniform(0, 100)
        for fault, pct in (_WRITE_PCT if operation in WRITES else _READ_PCT).items():
            at -= pct
            if at < 0:
                delay_s = round(dice.uniform(*_SLOW_S), 2) if fault is StoreFault.SLOW else 0.0
                number = dice.randint(1, _MAX_IN_A_ROW)
                return [Injected(fault, operation, path, delay_s)] * number
        return []

    def next_fault(self, operation: str, path: str) -> Injected | None:
        """Return the fault of the next request of this process, after noting it down."""
        name = _RANDOM.sub("*", os.path.relpath(path, self.folder))
        faults, nth = self.decide(operation, name), self._seen[operation, name]
        self._seen[operation, name] += 1
        if nth >= len(faults):
            return None
        line = json.dumps(asdict(faults[nth])) + "\n"
        descriptor = os.open(f"{self.folder}/{_INJECTED}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            os.write(descriptor, line.encode())  # whole, though many processes write here
        finally:
            os.close(descriptor)
        return faults[nth]


def ask_for_faults(folder: Path, seed: int) -> Mapping[str, str]:
    """Make a folder one that is disturbed; return the environment that asks for it."""
    (folder / _SETTINGS).write_text(json.dumps({"seed": seed}))
    return {STORE_WRAPPER: f"{_INJECTION}:{folder}"}


def read_injected(folder: Path) -> list[Injected]:
    """Return what all processes have injected so far."""
    path = folder / _INJECTED
    lines = path.read_text().splitlines() if path.exists() else []
    found = [json.loads(line) for line in lines]
    return [Injected(**{**entry, "fault": StoreFault(entry["fault"])}) for entry in found]


@functools.lru_cache
def read_chaos(folder: str) -> StoreChaos:
    """Return the faults of a scratch folder; one value per process, for it counts requests.

    Raises:
        JobError: It is no scratch folder of `pipeline chaos`.
    """
    try:
        seed = json.loads((Path(folder) / _SETTINGS).read_text())["seed"]
        return StoreChaos(folder, int(seed))
    except (OSError, ValueError, KeyError, TypeError):
        raise JobError(
            f"{STORE_WRAPPER} names {folder}, which is no scratch folder of `pipeline chaos`; "
            "unset it"
        ) from None
