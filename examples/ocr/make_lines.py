"""Write images with a line of text each: `make_lines.py [FOLDER]`."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LINES = ("Invoice 2026-11-24", "Total 1,280.50 EUR", "Thank you", "Room 42, second floor")


def write(folder: Path) -> None:
    """Write each line as black letters on white, named by its number."""
    folder.mkdir(parents=True, exist_ok=True)
    font = ImageFont.load_default(32)
    for number, line in enumerate(LINES):
        width_px = int(font.getlength(line)) + 20
        image = Image.new("RGB", (width_px, 48), "white")
        ImageDraw.Draw(image).text((10, 4), line, "black", font)
        image.save(folder / f"{number}.png")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output/input/lines"))
