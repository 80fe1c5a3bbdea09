"""What goes again, and what comes of it: the merged partition equals that of a run without failures."""

from __future__ import annotations

from pathlib import Path

from nights import Night

from pipeline.storage import Store
from pipeline.verify import verify_output


def write_images(folder: Path, num_rows: int) -> list[str]:
    folder.mkdir(parents=True)
    names = [f"{row:03d}.jpg" for row in range(num_rows)]
    for row, name in enumerate(names):
        (folder / name).write_bytes(b"image %d" % row)
    return names


def make_night(tmp_path: Path, name: str = "out", **source) -> Night:
    return Night(str(tmp_path / "in"), Store(str(tmp_path / name)), source)


def test_smoke(tmp_path: Path):
    names = write_images(tmp_path / "in", 30)
    night = make_night(tmp_path, format="images")
    whole = make_night(tmp_path, "whole", format="images")
    whole.run()
    night.broken = set(names[3:6]) | {names[0], names[29], names[17]}
    night.run()
    assert set(night.failed()) == night.broken
    fixed = {names[3], names[29], names[17]}
    night.broken -= fixed
    assert night.retry() == "published"
    assert night.failed().keys() == night.broken
    verify_output(night.out.uri, None, {})
    night.broken.clear()
    assert night.retry() == "published"
    verify_output(night.out.uri, None, {})
    assert night.content() == whole.content()
    assert night.retry() == "nothing_to_do"
