"""Install the toys like another distribution: metadata with entry points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, points: Mapping[str, Mapping[str, str]], name: str = "toys") -> Path:
    """Write a distribution that a path entry makes visible; return its folder.

    Args:
        folder: Goes on the path; the modules themselves lie in tests/support.
        points: Group -> name -> `module:attribute`.
        name: Of the distribution, version 1.0.
    """
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in points.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder
