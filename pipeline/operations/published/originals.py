"""Find what rows were predicted from: by the stored plan, read as the run has read it.

Images behind URIs are fetched under the rules of the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.core.errors import JobError
from pipeline.core.schema import ERROR, MESSAGE, ROW_ID, URI
from pipeline.job.source import Source
from pipeline.operations.published.inputs import by_shard, read_rows
from pipeline.report.showing.notebook import cell
from pipeline.runs.retry.quarantine import read_plan
from pipeline.sources.rows import Reader
from pipeline.sources.uris.fetch import fetch_many
from pipeline.sources.uris.policy import policy_of
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

_THUMBNAILS, _THUMBNAIL_PX, _THUMBNAIL_BYTES = 24, 128, 8_000
Wanted = Literal["images", "texts"]


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

        from pipeline.core.failures import RowError
        from pipeline.preprocessing.images.decode import DecodeLimits, decode_image

        if self.data is None:
            raise JobError(f"{self.row_id}: {self.problem or 'it is no image'}")
        try:
            pixels = decode_image(self.data, DecodeLimits(self.max_image_bytes, self.max_image_px))
        except RowError as error:
            raise JobError(f"{self.row_id}: {error}") from None
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())


class Originals(Sequence[Original]):
    """Originals in the order of the rows that were asked for; a notebook shows the first 24."""

    def __init__(self, found: Sequence[Original]) -> None:
        self._found = tuple(found)

    def __getitem__(self, index: Any) -> Any:
        found = self._found[index]
        return Originals(found) if isinstance(index, slice) else found

    def __len__(self) -> int:
        return len(self._found)

    def __repr__(self) -> str:
        num_bad = sum(each.problem is not None for each in self)
        return f"{len(self)} originals, {num_bad} of which cannot be read"

    def _repr_html_(self) -> str:
        """Return thumbnails with their ids, at most 8 KB each."""
        figures = "".join(
            '<figure style="display:inline-block;margin:4px;max-width:140px">'
            f"{_thumbnail(each)}<figcaption>{cell(each.row_id)}</figcaption></figure>"
            for each in self._found[:_THUMBNAILS]
        )
        return f"<div>{figures}</div>"


def find_originals(
    store: Store,
    layout: Layout,
    manifest: Manifest,
    rows: Any,
    source_options: Mapping[str, Any],
    wanted: Wanted,
) -> Originals:
    """Read the originals of some rows of a version; errors: `Partition.images`.

    Args:
        store: The output.
        layout: The partition.
        manifest: The version.
        rows: A table with the columns `row_id` and `uri`, or ids.
        source_options: fsspec options of the input.
        wanted: Which kind of input.
    """
    asked = _asked(rows)
    where = f"{store.url('')}: {layout.name}"
    if not manifest.source:
        raise JobError(f"{where}: its version does not say how its input was read; run it again")
    plan = read_plan(store, layout, manifest.fingerprint)
    source = Source.from_published(manifest.source, plan.source_root, source_options)
    reader = Reader(Store(plan.source_root, source_options), source, pa.schema([]), plan.fields)
    kind = pa.types.is_large_binary if wanted == "images" else pa.types.is_large_string
    columns = [field.name for field in plan.fields if kind(field.type)]
    if not columns:
        raise JobError(f"{where}: its rows were predicted from {', '.join(plan.fields.names)}")
    if source.input_columns.kind == "uri" and plan.row_ids == "column":
        return Originals(_fetched(reader, asked))
    found: dict[str, Original] = {}
    for extents, ids in by_shard(reader, plan, asked, where):
        for rows in read_rows(reader, plan, extents, ids):
            for row in rows.to_pylist():
                found[row[ROW_ID]] = _original(row, columns, wanted)
    missing = "is not in the input any more"
    return Originals(
        [found.get(row_id) or Original(row_id, uri, problem=missing) for row_id, uri in asked]
    )


def _asked(rows: Any) -> list[tuple[str, str]]:
    """Return id and URI of rows, the latter '' if it is not told."""
    table = rows
    if hasattr(rows, "to_table"):
        table = rows.to_table()
    elif hasattr(rows, "to_arrow"):
        table = rows.to_arrow()
    elif hasattr(rows, "iloc"):
        table = pa.Table.from_pandas(rows, preserve_index=False)
    if not isinstance(table, pa.Table):
        return [(str(row_id), "") for row_id in rows]
    if ROW_ID not in table.column_names:
        raise JobError(f"rows need a column {ROW_ID!r}; they have {', '.join(table.column_names)}")
    ids = table.column(ROW_ID).to_pylist()
    uris = table.column(URI).to_pylist() if URI in table.column_names else [""] * len(ids)
    return [*zip(ids, uris, strict=True)]


def _original(row: Mapping[str, Any], columns: Sequence[str], wanted: Wanted) -> Original:
    problem = None
    if row[ERROR] is not None:
        problem = f"{row[ERROR]}: {row[MESSAGE]}"
    values = [row[name] for name in columns]
    if wanted == "images":
        return Original(row[ROW_ID], row[URI], data=values[0], problem=problem)
    text = values[0] if len(values) == 1 else tuple(values)
    return Original(row[ROW_ID], row[URI], text=None if problem else text, problem=problem)


def _fetched(reader: Reader, asked: Sequence[tuple[str, str]]) -> list[Original]:
    """Fetch images by their URIs."""
    policy = policy_of(reader.source, reader.store.uri)
    fetched = fetch_many([uri for _, uri in asked], policy)
    return [
        Original(
            row_id,
            uri,
            data=each.data,
            problem=None if each.failure is None else f"{each.failure[0]}: {each.failure[1]}",
        )
        for (row_id, uri), each in zip(asked, fetched, strict=True)
    ]


def _thumbnail(original: Original) -> str:
    """Return a small JPEG as an element, or why there is none."""
    from base64 import b64encode

    try:
        image = original.open().convert("RGB")
        image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    except JobError as error:
        return f"<small>{cell(error)}</small>"
    for quality in (75, 40, 10):
        buffer = BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= _THUMBNAIL_BYTES:
            break
    data = b64encode(buffer.getvalue()).decode()
    return f'<img alt="{cell(original.row_id)}" src="data:image/jpeg;base64,{data}">'
