"""Find what rows were predicted from: by the stored plan, read as the run has read it.

Images behind URIs are fetched under the rules of the job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.plan_store import read_plan
from pipeline.core.errors import JobError
from pipeline.core.failures import RowError
from pipeline.core.schema import ERROR, MESSAGE, ROW_ID, URI
from pipeline.job.source import Source
from pipeline.planning.plan import Plan
from pipeline.published.inputs import are_fetched, by_shard, fetch_rows, read_rows
from pipeline.report.showing.printed import cell
from pipeline.sources.rows import Reader
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.preprocessing.images.image_checks import DecodeLimits
    from pipeline.preprocessing.images.thumbnails import Thumbnail

_THUMBNAILS, _THUMBNAIL_PX, _THUMBNAIL_BYTES = 24, 128, 8_000
T = TypeVar("T")
Wanted = Literal["images", "texts"]
_TYPE_CHECKS = {"images": pa.types.is_large_binary, "texts": pa.types.is_large_string}


@dataclass(frozen=True)
class Original:
    """What one row was predicted from."""

    row_id: str
    uri: str
    data: bytes | None = None
    """The encoded image; None of a text, and of a row that cannot be read."""
    text: Any = None
    """The text, or a tuple of two; None likewise."""
    problem: str | None = None
    """Why it cannot be read."""
    max_image_bytes: int = 64 * 2**20
    """Limits of the job, for what decodes it."""
    max_image_px: int = 100_000_000

    def open(self) -> Image:
        """Decode the image with Pillow, within the limits of a run.

        Raises:
            JobError: It cannot be decoded, or read.
        """
        from PIL import Image

        from pipeline.preprocessing.images.decode import decode_image

        pixels = self._decoded(decode_image)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def thumbnail(self, side_px: int, max_bytes: int) -> Thumbnail:
        """Decode the image to a small JPEG; as `open`, without torch."""
        from pipeline.preprocessing.images.thumbnails import make_thumbnail

        make = partial(make_thumbnail, side_px=side_px, max_bytes=max_bytes)
        return self._decoded(make)

    def _decoded(self, decode: Callable[[bytes, DecodeLimits], T]) -> T:
        from pipeline.preprocessing.images.image_checks import DecodeLimits

        if self.data is None:
            raise JobError(f"{self.row_id}: {self.problem or 'it is no image'}")
        try:
            return decode(self.data, DecodeLimits(self.max_image_bytes, self.max_image_px))
        except RowError as error:
            raise JobError(f"{self.row_id}: {error}") from None


class Originals(Sequence[Original]):
    """Originals in the order of the rows that were asked for; a notebook shows the first 24."""

    def __init__(self, originals: Sequence[Original]) -> None:
        self._originals = tuple(originals)

    def __getitem__(self, index: Any) -> Any:
        chosen = self._originals[index]
        return Originals(chosen) if isinstance(index, slice) else chosen

    def __len__(self) -> int:
        return len(self._originals)

    def __repr__(self) -> str:
        num_bad = sum(original.problem is not None for original in self)
        return f"{len(self)} originals, {num_bad} of which cannot be read"

    def _repr_html_(self) -> str:
        """Return thumbnails with their ids, at most 8 KB each."""
        figures = "".join(
            '<figure style="display:inline-block;margin:4px;max-width:140px">'
            f"{_thumbnail(original)}<figcaption>{cell(original.row_id)}</figcaption></figure>"
            for original in self._originals[:_THUMBNAILS]
        )
        return f"<div>{figures}</div>"


@dataclass(frozen=True)
class OriginalFinder:
    """Reads the originals of rows of a version; the plan is read once."""

    store: Store
    """The output."""
    layout: Layout
    manifest: Manifest
    source_options: Mapping[str, Any]
    """fsspec options of the input."""

    @property
    def where(self) -> str:
        """The output and the partition, for messages."""
        return f"{self.store.url('')}: {self.layout.name}"

    @cached_property
    def plan(self) -> Plan:
        """The plan of the rows.

        Raises:
            JobError: The version is of before it said how its input was read.
            InfraError: It is missing or damaged.
        """
        if not self.manifest.source:
            raise JobError(
                f"{self.where}: its version does not say how its input was read; run it again"
            )
        return read_plan(self.store, self.layout, self.manifest.plan_name)

    @cached_property
    def reader(self) -> Reader:
        """What reads them, as the run has."""
        plan, options = self.plan, self.source_options
        source = Source.from_published(self.manifest.source, plan.source_root, options)
        return Reader(Store(plan.source_root, options), source, pa.schema([]), plan.fields)

    def columns(self, *wanted: Wanted) -> list[str]:
        """Return the columns of the input that hold images or texts.

        Raises:
            JobError: There are none.
        """
        checks = [_TYPE_CHECKS[name] for name in wanted]
        fields = self.plan.fields
        columns = [field.name for field in fields if any(check(field.type) for check in checks)]
        if not columns:
            raise JobError(f"{self.where}: its rows were predicted from {', '.join(fields.names)}")
        return columns

    def find(self, rows: Any, *wanted: Wanted) -> Originals:
        """Read the originals of some rows; errors: `Partition.images`.

        Args:
            rows: A table with the columns `row_id` and `uri`, or ids.
            wanted: Which kinds of input.
        """
        asked, columns = _asked(rows), self.columns(*wanted)
        reader, plan = self.reader, self.plan
        if are_fetched(reader, plan):
            tables: Iterable[pa.Table] = [fetch_rows(reader, asked)]
        else:
            shards = by_shard(reader, plan, asked, self.where)
            tables = (t for extents, ids in shards for t in read_rows(reader, plan, extents, ids))
        originals = {
            row[ROW_ID]: _original(reader.source, row, columns, plan.fields)
            for table in tables
            for row in table.to_pylist()
        }
        missing = partial(Original, problem="is not in the input any more")
        return Originals([originals.get(row_id) or missing(row_id, uri) for row_id, uri in asked])


def _asked(rows: Any) -> list[tuple[str, str]]:
    """Return id and URI of rows, the latter '' if it is not told."""
    table = rows
    if hasattr(rows, "to_table"):
        table = rows.to_table()
    elif hasattr(rows, "to_arrow"):
        table = rows.to_arrow()
    elif hasattr(rows, "iloc") and hasattr(rows, "columns"):  # a Series is ids alone
        table = pa.Table.from_pandas(rows, preserve_index=False)
    if not isinstance(table, pa.Table):
        return [(str(row_id), "") for row_id in rows]
    if ROW_ID not in table.column_names:
        raise JobError(f"rows need a column {ROW_ID!r}; they have {', '.join(table.column_names)}")
    ids = table.column(ROW_ID).to_pylist()
    uris = table.column(URI).to_pylist() if URI in table.column_names else [""] * len(ids)
    return [*zip(ids, uris, strict=True)]


def _original(
    source: Source, row: Mapping[str, Any], columns: Sequence[str], fields: pa.Schema
) -> Original:
    problem = None if row[ERROR] is None else f"{row[ERROR]}: {row[MESSAGE]}"
    is_image = _TYPE_CHECKS["images"]
    images = [row[name] for name in columns if is_image(fields.field(name).type)]
    texts = [row[name] for name in columns if not is_image(fields.field(name).type)]
    return Original(
        row[ROW_ID],
        row[URI],
        data=images[0] if images else None,
        text=None if problem or not texts else texts[0] if len(texts) == 1 else tuple(texts),
        problem=problem,
        max_image_bytes=source.max_image_bytes,
        max_image_px=source.max_image_px,
    )


def _thumbnail(original: Original) -> str:
    """Return a small JPEG as an element, or why there is none."""
    from base64 import b64encode

    try:
        small = original.thumbnail(_THUMBNAIL_PX, _THUMBNAIL_BYTES)
    except JobError as error:
        return f"<small>{cell(error)}</small>"
    data = b64encode(small.jpeg).decode()
    return f'<img alt="{cell(original.row_id)}" src="data:image/jpeg;base64,{data}">'
