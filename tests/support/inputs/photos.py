"""Photos as input: seeded crops of what scikit-image and scikit-learn ship, and bad rows.

The same seed gives the same bytes and the same modification times; more rows extend the sequence.
"""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core.failures import Reason

CAMERAS = ("north", "east", "south", "west")
_SHIPPED = {
    "astronaut": "skimage/data/astronaut.png",
    "camera": "skimage/data/camera.png",
    "chelsea": "skimage/data/chelsea.png",
    "china": "sklearn/datasets/images/china.jpg",
    "coffee": "skimage/data/coffee.png",
    "coins": "skimage/data/coins.png",
    "flower": "sklearn/datasets/images/flower.jpg",
    "hubble": "skimage/data/hubble_deep_field.jpg",
    "motorcycle": "skimage/data/motorcycle_left.png",
    "rocket": "skimage/data/rocket.jpg",
}
_FILE_BAD = (Reason.TRUNCATED, Reason.EMPTY)
_PARQUET_BAD = (Reason.NULL_INPUT, *_FILE_BAD * 3)


class Photo(NamedTuple):
    """One encoded photo; the name, as in `chelsea-0007.jpg`, tells what it shows."""

    name: str
    data: bytes


def photo_rows(num_rows: int, seed: int) -> Iterator[Photo]:
    """Yield seeded crops of the base photos in turn: mostly JPEG, some PNG and WebP."""
    bases = list(load_bases().items())
    for index in range(num_rows):
        name, base = bases[index % len(bases)]
        rng = np.random.default_rng([seed, index])
        image = _crop(base, rng)
        extension, data = _encode(image, rng)
        yield Photo(f"{name}-{index:04d}.{extension}", data)


def build_images(folder: Path, num_rows: int, seed: int, num_bad: int) -> dict[str, Reason]:
    """Write one file per row under `<folder>/<camera>/`; return why bad ones fail, by id."""
    bad = {}
    for index, (name, data, reason) in enumerate(_rows(num_rows, seed, num_bad, _FILE_BAD)):
        row_id = f"{CAMERAS[index % 4]}/{name}"
        _write(folder / row_id, data or b"", _taken_at(seed, index))
        if reason:
            bad[row_id] = reason
    return bad


def build_parquet(
    folder: Path, num_rows: int, seed: int, num_shards: int, num_bad: int, row_group_rows: int = 64
) -> dict[str, Reason]:
    """Write shards of nearly equal length; return why bad rows fail, by id."""
    names, images, reasons = zip(*_rows(num_rows, seed, num_bad, _PARQUET_BAD), strict=True)
    table = pa.table(
        {
            "id": names,
            "image": images,
            "taken_at": [_taken_at(seed, index) for index in range(num_rows)],
            "camera": [CAMERAS[index % 4] for index in range(num_rows)],
        }
    )
    for shard in range(num_shards):
        start, end = num_rows * shard // num_shards, num_rows * (shard + 1) // num_shards
        buffer = io.BytesIO()
        pq.write_table(table[start:end], buffer, row_group_size=row_group_rows)
        path = folder / f"shard-{shard:05d}.parquet"
        _write(path, buffer.getvalue(), _taken_at(seed, start))
    return {name: reason for name, reason in zip(names, reasons, strict=True) if reason}


def load_bases() -> dict[str, Image.Image]:
    """Load the photos that the packages ship, by name; grey ones have equal channels."""
    bases = {}
    for name, place in _SHIPPED.items():
        package, _, relative = place.partition("/")
        spec = find_spec(package)  # does not import it, which takes a second
        assert spec is not None, f"{package} is not installed"
        with Image.open(Path(str(spec.origin)).parent / relative) as image:
            bases[name] = image.convert("RGB")
    return bases


def _crop(base: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut 60 to 100 % of each side, scale the longer one to 300 to 700 px, flip one in four."""
    width = base.width * rng.uniform(0.6, 1.0)
    height = base.height * rng.uniform(0.6, 1.0)
    left = rng.uniform(0, base.width - width)
    top = rng.uniform(0, base.height - height)
    scale = rng.integers(300, 700, endpoint=True) / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    box = (left, top, left + width, top + height)
    image = base.resize(size, Image.Resampling.BICUBIC, box=box)
    flips = rng.random() < 0.25
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flips else image


def _encode(image: Image.Image, rng: np.random.Generator) -> tuple[str, bytes]:
    share, quality = rng.random(), int(rng.integers(80, 95, endpoint=True))
    buffer = io.BytesIO()
    if share < 0.90:
        image.save(buffer, "JPEG", quality=quality)
        return "jpg", buffer.getvalue()
    if share < 0.95:
        image.save(buffer, "PNG", compress_level=1)  # level 6 takes four times as long
        return "png", buffer.getvalue()
    image.save(buffer, "WEBP", quality=quality, method=0)  # method 4 takes four times as long
    return "webp", buffer.getvalue()


def _rows(
    num_rows: int, seed: int, num_bad: int, reasons: tuple[Reason, ...]
) -> Iterator[tuple[str, bytes | None, Reason | None]]:
    """Yield names and bytes, of which `num_bad`, at seeded places, must fail for a reason."""
    places = np.random.default_rng(seed).permutation(num_rows)[:num_bad]
    reason_at = {int(at): reasons[i % len(reasons)] for i, at in enumerate(sorted(places))}
    for index, (name, data) in enumerate(photo_rows(num_rows, seed)):
        reason = reason_at.get(index)
        spoilt = {Reason.EMPTY: b"", Reason.TRUNCATED: data[: len(data) // 2], None: data}
        yield name, spoilt.get(reason), reason  # None: a null


def _taken_at(seed: int, index: int) -> dt.datetime:
    # The seed moves the clock, so that another seed never looks like the same files.
    first = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    return first + dt.timedelta(hours=seed % 5_000, seconds=index)


def _write(path: Path, data: bytes, modified_at: dt.datetime) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.utime(path, (modified_at.timestamp(),) * 2)
