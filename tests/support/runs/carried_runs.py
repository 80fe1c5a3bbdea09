"""A night that carries rows from three versions: the current one, one in the history, and another
partition's. Files of a folder keep their times while the folder is away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.core.environment import FAILPOINT
from pipeline.process import failpoints
from pipeline.storage.store import Store
from support.models.model_cases import colours_state
from support.runs.earlier_partitions import EarlierPartition
from support.runs.night_inputs import image

YESTERDAY, TODAY, TOMORROW = "date=2026-11-24", "date=2026-11-25", "date=2026-11-26"
FOLDERS = {"a": 40, "b": 16, "c": 16}
BROKEN = frozenset({"a/003.jpg", "b/001.jpg"})
KEEP_VERSIONS = 1


@dataclass(frozen=True)
class Inputs:
    """Photos in folders, and the weights of the model."""

    folder: Path
    kind: str = "inputs"
    """What `run.reuse` says."""

    @property
    def photos(self) -> Path:
        return self.folder / "in"

    @classmethod
    def write(cls, folder: Path, kind: str = "inputs") -> Inputs:
        inputs = cls(folder, kind)
        for name, num_files in FOLDERS.items():
            (inputs.photos / name).mkdir(parents=True)
            for number in range(num_files):
                path = inputs.photos / name / f"{number:03d}.jpg"
                path.write_bytes(image(100 * ord(name) + number))
        torch.save(colours_state(), folder / "weights.pt")
        return inputs

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        for name in names:
            (self.photos / name).rename(self.folder / name)
        yield
        for name in names:
            (self.folder / name).rename(self.photos / name)

    def change(self) -> None:
        """Add, change and remove photos."""
        (self.photos / "a" / "900.jpg").write_bytes(image(900))
        (self.photos / "b" / "002.jpg").write_bytes(image(901))
        (self.photos / "c" / "003.jpg").unlink()

    def night(
        self, store: Store, partition: str = TODAY, *, reuse: bool = True, **sections: Any
    ) -> EarlierPartition:
        sink = {"target_part_mib": 0.012, "keep_versions": KEEP_VERSIONS}
        sections["sink"] = {**sink, **sections.get("sink", {})}
        sections["run"] = {"reuse": self.kind, **sections.get("run", {})}
        weights = str(self.folder / "weights.pt")
        return EarlierPartition(
            *(str(self.photos), store, {"format": "images"}, set(BROKEN), sections, weights),
            reuse=reuse,
            partition=partition,
        )

    def publish_earlier(self, store: Store) -> None:
        """Publish yesterday, and today twice, so that each version alone has one of the folders."""
        self.night(store, YESTERDAY).run()
        with self.without("c"):
            self.night(store).run()
            with self.without("b"):
                self.night(store).run()


def run_night(inputs: Inputs, store: Store) -> None:
    """Publish today's next version."""
    inputs.night(store).run()


def stop_at(point: str, act: Callable[[], object]) -> None:
    """Let a run end as if it was killed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(failpoints, "_reached", Counter())
        patch.setenv(FAILPOINT, f"{point}:raise")
        with pytest.raises(RuntimeError, match=point):
            act()
