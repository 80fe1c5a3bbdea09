"""Row keys of an earlier version, as a look-up asks for them, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.core.arrays import Numbers
from pipeline.sources.lookup import Hashes


@dataclass(frozen=True)
class KnownRows:
    """Knows hashes; the number of each is its place."""

    hashes: tuple[bytes, ...]
    error: str = ""
    """What a look-up fails with, if anything."""

    @classmethod
    def of(cls, hashes: Sequence[bytes | None]) -> KnownRows:
        return cls(tuple(each for each in hashes if each is not None))

    def find(self, hashes: Hashes) -> Numbers:
        if self.error:
            raise OSError(self.error)
        places = {each: place for place, each in enumerate(self.hashes)}
        return np.array([places.get(each.tobytes(), -1) for each in hashes], np.int64)
