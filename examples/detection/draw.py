"""Draw the boxes of a published output on its photos."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageOps

import pipeline

OUTPUT, DRAWN = "demo-output/output/detection", "demo-output/drawn"


def draw(output: str, folder: Path, most: int = 20) -> list[Path]:
    """Write photos with their boxes and return their paths; those without a box are left out.

    Args:
        output: The sink of a job with task `detect` over image files.
        folder: Where the drawings go.
        most: How many are drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = pipeline.open_output(output).predictions(["uri", "detections"]).to_table()
    found = table.filter(pc.greater(pc.list_value_length(table["detections"]), 0)).slice(0, most)
    return [_draw(row, folder) for row in found.to_pylist()]


def _draw(row: dict[str, Any], folder: Path) -> Path:
    # Boxes are in pixels of the upright photo: first the rotation that EXIF asks for.
    photo = ImageOps.exif_transpose(Image.open(row["uri"])).convert("RGB")
    pen = ImageDraw.Draw(photo)
    for each in row["detections"]:
        corner = each["x_min"], each["y_min"]
        pen.rectangle([*corner, each["x_max"], each["y_max"]], outline="red", width=3)
        pen.text(corner, f"{each['label']} {each['score']:.2f}", fill="red")
    path = folder / f"{Path(row['uri']).stem}.png"
    photo.save(path)
    return path


if __name__ == "__main__":
    output, folder = sys.argv[1:3] if len(sys.argv) > 2 else (OUTPUT, DRAWN)
    print(*draw(output, Path(folder)), sep="\n")
