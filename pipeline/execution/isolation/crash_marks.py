"""Crash marks: a process makes a file before it begins a piece of work, and removes it at the end.

An attempt that finds the mark of an earlier one knows that its process ended there: by a crash, a
hang, or a kill that had nothing to do with the work. Marks belong to a node: on another node one
more process may end.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.private_files import open_file, opened

_KEPT_S = 7 * 86_400.0
_UNSAFE_FROM = 3
_ENDED_AT = 2
_POISON = "poison"
_MANY = f"{_POISON}-many"


@dataclass(frozen=True)
class Earlier:
    """Facts about earlier attempts at a piece of work that ended their process."""

    exits: int = 0
    ended_at: tuple[tuple[str, str | None], ...] = ()
    """(stage, row id) on which each attempt worked at its end, if known; None for a batch. It is
    unknown for an attempt whose child was still starting."""

    @property
    def suspected_rows(self) -> dict[str, tuple[str, int]]:
        """Return the rows over which several attempts ended: row id -> (stage, attempts)."""
        times = Counter((row, stage) for stage, row in self.ended_at if row is not None)
        return {row: (stage, n) for (row, stage), n in times.items() if n >= _ENDED_AT}

    @property
    def end_in_batches(self) -> bool:
        """Tell whether several attempts ended over batches."""
        return sum(row is None for _, row in self.ended_at) >= _ENDED_AT


@dataclass(frozen=True)
class CrashMarks:
    """The marks of one run on one node."""

    folder: Path
    """A folder on this node, for this run alone."""

    def forget_old_runs(self) -> None:
        """Remove marks of runs on this node that no attempt has touched for a week."""
        for other in self.folder.parent.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - other.lstat().st_mtime > _KEPT_S:
                    shutil.rmtree(other)

    @contextlib.contextmanager
    def attempt(self, name: str) -> Iterator[Earlier]:
        """Mark the body as an attempt at `name`; the mark remains only if the process ends in it.

        Raises:
            InfraError: The folder is not this user's own, or others may write to it.
        """
        with opened(self.folder) as folder:
            earlier = _begin(folder, name)
        try:
            yield earlier
        finally:
            (self.folder / name).unlink(missing_ok=True)

    def note(self, name: str, stage: str, row_id: str | None) -> None:
        """Note what the attempt at `name` works on: one row alone, or a batch (None)."""
        with opened(self.folder) as folder:
            _append(folder, name, {"stage": stage, "row": row_id})

    def mark_poison(self, name: str) -> None:
        """Note that `name` has poison rows, which end processes."""
        with opened(self.folder / _POISON) as poison:
            os.close(open_file(poison, name, os.O_CREAT | os.O_WRONLY))
            is_many = len(os.listdir(poison)) >= _UNSAFE_FROM
        if is_many:
            with opened(self.folder) as folder:
                os.close(open_file(folder, _MANY, os.O_CREAT | os.O_WRONLY))

    @property
    def are_unsafe(self) -> bool:
        """Tell whether so many slices had poison rows that all work is to be isolated."""
        return os.path.lexists(self.folder / _MANY)


def _begin(folder: int, name: str) -> Earlier:
    while True:
        try:
            os.close(open_file(folder, name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            # Ray may have given the same work to two processes, and the other one may end now.
            with contextlib.suppress(FileNotFoundError):
                earlier = _read(folder, name)
                _append(folder, name, {})
                return earlier
        else:
            return Earlier()


def _append(folder: int, name: str, entry: dict[str, str | None]) -> None:
    # Made again if another attempt at the same work has just ended.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    with os.fdopen(open_file(folder, name, flags), "a") as marks:
        marks.write(json.dumps(entry) + "\n")


def _read(folder: int, name: str) -> Earlier:
    """Read a mark: an empty entry begins each attempt except the first."""
    exits, ended_at = 1, list[tuple[str, str | None]]()
    last: tuple[str, str | None] | None = None
    with os.fdopen(open_file(folder, name, os.O_RDONLY)) as marks:
        lines = marks.read().splitlines()
    for line in lines:
        entry = json.loads(line)
        if entry:
            last = (entry["stage"], entry["row"])
            continue
        exits += 1
        ended_at += [last] if last else []
        last = None
    ended_at += [last] if last else []
    return Earlier(exits, tuple(ended_at))
