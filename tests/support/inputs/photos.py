"""Real photos as input: seeded crops of what scikit-image and scikit-learn ship, and bad rows.

In: a number of rows and a seed. Out: a folder of image files or of Parquet shards, and which of
their rows must fail with which reason. The photos are read as files of the installed packages, so
that nothing is downloaded and neither package is imported. The same seed gives the same bytes and
the same modification times: building again does not look like new input.
"""

from __future__ import annotations

import datetime as dt
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.core.errors import JobError
from pipeline.core.failures import Reason

CAMERAS = ("north", "east", "south", "west")
_SHIPPED = {
    "astronaut": ("skimage", "data/astronaut.png"),
    "camera": ("skimage", "data/camera.png"),
    "chelsea": ("skimage", "data/chelsea.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "rocket": ("skimage", "data/rocket.jpg"),
}
_FILE_BAD = (Reason.TRUNCATED, Reason.EMPTY)
_PARQUET_BAD = (Reason.NULL_INPUT, *_FILE_BAD * 3)
_SIDE_PX = (300, 700)
_FIRST_TAKEN_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
_PARQUET_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("image", pa.binary()),
        pa.field("taken_at", pa.timestamp("us", tz="UTC")),
        pa.field("camera", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
    ]
)


@dataclass(frozen=True)
class Photo:
    """One encoded photo; the name, as in `chelsea-0007.jpg`, tells what it shows."""

    name: str
    data: bytes
    width_px: int
    height_px: int


@dataclass(frozen=True)
class Built:
    """What was built: all rows, and the row id of each bad one with the reason it must get."""

    num_rows: int
    bad: Mapping[str, Reason]


@dataclass(frozen=True)
class _Row:
    """One row to be written; a bad one has a reason, and `data` already spoilt (or None)."""

    photo: Photo
    data: bytes | None
    reason: Reason | None
    camera: str
    taken_at: dt.datetime


def photo_rows(num_rows: int, seed: int) -> Iterator[Photo]:
    """Yield seeded crops of the base photos in turn: mostly JPEG, some PNG and WebP.

    A photo depends on the seed and on its own place only: more rows extend the same sequence.

    Raises:
        JobError: scikit-image or scikit-learn is not installed, or ships no such photo.
    """
    bases = list(load_bases().items())
    for index in range(num_rows):
        name, base = bases[index % len(bases)]
        rng = np.random.default_rng([seed, index])
        image = _crop(base, rng)
        extension, data = _encode(image, rng)
        yield Photo(f"{name}-{index:04d}.{extension}", data, image.width, image.height)


def build_images(folder: Path, num_rows: int, seed: int, num_bad: int) -> Built:
    """Write one file per row under `<folder>/<camera>/`; num_bad of the rows are bad.

    Raises:
        JobError: The demo packages are missing, or the folder holds files that do not belong to
            this build.
    """
    bad: dict[str, Reason] = {}
    written: set[Path] = set()
    for row in _rows(num_rows, seed, num_bad, _FILE_BAD):
        relative = f"{row.camera}/{row.photo.name}"
        write_file(folder / relative, row.data or b"", row.taken_at)
        written.add(folder / relative)
        if row.reason:
            bad[relative] = row.reason
    refuse_strangers(folder, written)
    return Built(num_rows, bad)


def build_parquet(
    folder: Path, num_rows: int, seed: int, num_shards: int, num_bad: int, row_group_rows: int = 64
) -> Built:
    """Write num_shards Parquet shards of nearly equal length; num_bad of the rows are bad.

    Columns: `id` (the photo's name), `image` (encoded bytes), `taken_at`, `camera`, `width` and
    `height` in pixels (null for bad rows).

    Raises:
        JobError: The demo packages are missing, or the folder holds files that do not belong to
            this build.
    """
    rows = _rows(num_rows, seed, num_bad, _PARQUET_BAD)
    bad: dict[str, Reason] = {}
    written: set[Path] = set()
    for shard in range(num_shards):
        start, end = num_rows * shard // num_shards, num_rows * (shard + 1) // num_shards
        chunk = [next(rows) for _ in range(start, end)]
        bad.update({row.photo.name: row.reason for row in chunk if row.reason})
        path = folder / f"shard-{shard:05d}.parquet"
        write_file(path, _to_parquet(chunk, row_group_rows), _taken_at(seed, start))
        written.add(path)
    refuse_strangers(folder, written)
    return Built(num_rows, bad)


def load_bases() -> dict[str, Image.Image]:
    """Load the photos that the packages ship, by name; grey ones have equal channels.

    Raises:
        JobError: scikit-image or scikit-learn is not installed, or ships no such photo.
    """
    bases = {}
    for name, (package, relative) in _SHIPPED.items():
        with Image.open(_package_file(package, relative)) as image:
            bases[name] = image.convert("RGB")
    return bases


def _package_file(package: str, relative: str) -> Path:
    # find_spec does not import: scikit-image and scikit-learn would take a second of start-up.
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise JobError("the demo needs the extra: pip install 'batch-inference-pipeline[demo]'")
    path = Path(spec.submodule_search_locations[0]) / relative
    if not path.is_file():
        raise JobError(f"{path}: this version of the package does not ship the photo")
    return path


def _crop(base: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Cut 60 to 100 % of each side, scale the longer one to 300 to 700 px, flip one in four."""
    width = base.width * rng.uniform(0.6, 1.0)
    height = base.height * rng.uniform(0.6, 1.0)
    left = rng.uniform(0, base.width - width)
    top = rng.uniform(0, base.height - height)
    scale = rng.integers(_SIDE_PX[0], _SIDE_PX[1], endpoint=True) / max(width, height)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    box = (left, top, left + width, top + height)
    image = base.resize(size, Image.Resampling.BICUBIC, box=box)
    if rng.random() < 0.25:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _encode(image: Image.Image, rng: np.random.Generator) -> tuple[str, bytes]:
    kind, quality = rng.random(), int(rng.integers(80, 95, endpoint=True))
    buffer = io.BytesIO()
    if kind < 0.90:
        image.save(buffer, "JPEG", quality=quality)
        return "jpg", buffer.getvalue()
    if kind < 0.95:
        image.save(buffer, "PNG", compress_level=1)  # level 6 takes four times as long
        return "png", buffer.getvalue()
    image.save(buffer, "WEBP", quality=quality, method=0)  # method 4 takes four times as long
    return "webp", buffer.getvalue()


def _rows(num_rows: int, seed: int, num_bad: int, reasons: tuple[Reason, ...]) -> Iterator[_Row]:
    places = np.random.default_rng(seed).permutation(num_rows)[:num_bad]
    reason_at = {int(at): reasons[i % len(reasons)] for i, at in enumerate(sorted(places))}
    for index, photo in enumerate(photo_rows(num_rows, seed)):
        reason = reason_at.get(index)
        data = photo.data if reason is None else _spoil(photo, reason)
        yield _Row(photo, data, reason, CAMERAS[index % len(CAMERAS)], _taken_at(seed, index))


def _spoil(photo: Photo, reason: Reason) -> bytes | None:
    """Return the bytes of a bad row (None for a null) that must fail for this very reason."""
    if reason is Reason.NULL_INPUT:
        return None
    return b"" if reason is Reason.EMPTY else photo.data[: len(photo.data) // 2]


def _to_parquet(rows: list[_Row], row_group_rows: int) -> bytes:
    """Return rows as one Parquet file."""
    table = pa.table(
        {
            "id": [row.photo.name for row in rows],
            "image": [row.data for row in rows],
            "taken_at": [row.taken_at for row in rows],
            "camera": [row.camera for row in rows],
            "width": [None if row.reason else row.photo.width_px for row in rows],
            "height": [None if row.reason else row.photo.height_px for row in rows],
        },
        schema=_PARQUET_SCHEMA,
    )
    buffer = io.BytesIO()
    # Encoded images do not compress further, and no two of them are equal.
    pq.write_table(
        table,
        buffer,
        row_group_size=row_group_rows,
        use_dictionary=["camera"],
        compression={name: "none" if name == "image" else "zstd" for name in table.column_names},
    )
    return buffer.getvalue()


def _taken_at(seed: int, index: int) -> dt.datetime:
    # The seed moves the clock, so that another seed never looks like the same files.
    return _FIRST_TAKEN_AT + dt.timedelta(hours=seed % 5_000, seconds=index)


def write_file(path: Path, data: bytes, modified_at: dt.datetime) -> None:
    """Write a file with a time of its own: written again it does not look like another."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    stamp_s = modified_at.timestamp()
    os.utime(path, (stamp_s, stamp_s))


def refuse_strangers(folder: Path, written: set[Path]) -> None:
    """Refuse a folder that holds other files than those that were written.

    Raises:
        JobError: It does.
    """
    strangers = sorted(p for p in folder.rglob("*") if p.is_file() and p not in written)
    if strangers:
        raise JobError(
            f"{folder}: holds {len(strangers)} files that are not part of this build, such as "
            f"{strangers[0].relative_to(folder)}; give an empty folder"
        )
