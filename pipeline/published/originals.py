"""Read the originals of rows, the images and texts that they were predicted from.

The shards of the stored plan are read as the run has read them; images behind URIs are fetched
under the rules of the job. The id of a row tells where it lies (the path of a file, a row of a
shard, a key in a tar). If ids are a column, the URI of the row names the shard, which is read until
the rows are found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pyarrow as pa

from pipeline.commit.layout import Layout
from pipeline.commit.manifest import Manifest
from pipeline.commit.plan_store import read_plan
from pipeline.core.errors import JobError
from pipeline.core.failures import Failure, RowError
from pipeline.core.figures import READ
from pipeline.core.schema import ERROR, MESSAGE, ROW_ID, URI
from pipeline.job.source import Source
from pipeline.planning.plan import Plan
from pipeline.report.showing.printed import cell
from pipeline.sources.input_columns import columns_of
from pipeline.sources.reader import read_slices
from pipeline.sources.rows import Reader, make_rows
from pipeline.sources.units import Extent, RowFilter, UncountedPlan, Unit
from pipeline.sources.uris.fetch import fetch_many
from pipeline.sources.uris.policy import policy_of
from pipeline.storage.store import Store

if TYPE_CHECKING:
    from PIL.Image import Image

    from pipeline.preprocessing.images.image_checks import DecodeLimits
    from pipeline.preprocessing.images.thumbnails import Thumbnail

_THUMBNAILS, _THUMBNAIL_PX, _THUMBNAIL_BYTES = 24, 128, 8_000
T = TypeVar("T")
Wanted = Literal["images", "texts"]
_TYPE_CHECKS = {"images": pa.types.is_large_binary, "texts": pa.types.is_large_string}
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 256, 64 * 2**20


@dataclass(frozen=True)
class Original:
    """The image or text that one row was predicted from."""

    row_id: str
    uri: str
    data: bytes | None = None
    """The encoded image; None for a text and for a row that cannot be read."""
    text: Any = None
    """The text, or a tuple of two; None for an image and for a row that cannot be read."""
    problem: str | None = None
    """Why it cannot be read."""
    max_image_bytes: int = 64 * 2**20
    """The limits of the job for decoding."""
    max_image_px: int = 100_000_000

    def open(self) -> Image:
        """Decode the image with Pillow, within the limits of a run.

        Raises:
            JobError: It cannot be decoded, or read.
        """
        from PIL import Image

        from pipeline.preprocessing.images.decode_image import decode_image

        pixels = self._decoded(decode_image)
        return Image.fromarray(pixels.permute(1, 2, 0).numpy())

    def thumbnail(self, side_px: int, max_bytes: int) -> Thumbnail:
        """Decode the image to a small JPEG, without torch; errors: as `open`."""
        from pipeline.preprocessing.images.thumbnails import make_thumbnail

        make = partial(make_thumbnail, side_px=side_px, max_bytes=max_bytes)
        return self._decoded(make)

    def _decoded(self, decode: Callable[[bytes, DecodeLimits], T]) -> T:
        from pipeline.preprocessing.images.image_checks import DecodeLimits

        if self.data is None:
            raise JobError(f"{self.row_id}: {self.problem or 'not an image'}")
        try:
            return decode(self.data, DecodeLimits(self.max_image_bytes, self.max_image_px))
        except RowError as error:
            raise JobError(f"{self.row_id}: {error}") from None


class Originals(Sequence[Original]):
    """Originals in the order of the rows asked for; a notebook shows the first 24."""

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
            JobError: The version does not tell how its input was read.
            InfraError: The plan is missing or damaged.
        """
        if not self.manifest.source:
            raise JobError(
                f"{self.where}: the version does not tell how its input was read; run it again"
            )
        return read_plan(self.store, self.layout, self.manifest.plan_name)

    @cached_property
    def reader(self) -> Reader:
        """The reader of the input, as in the run."""
        plan, options = self.plan, self.source_options
        source = Source.from_published(self.manifest.source, plan.source_root, options)
        store, no_columns = Store(plan.source_root, options), pa.schema([])
        return Reader(store, source, no_columns, plan.fields, table=plan.table)

    def columns(self, *wanted: Wanted) -> list[str]:
        """Return the columns of the input that hold images or texts.

        Raises:
            JobError: No column does.
        """
        checks = [_TYPE_CHECKS[name] for name in wanted]
        fields = self.plan.fields
        columns = [field.name for field in fields if any(check(field.type) for check in checks)]
        if not columns:
            raise JobError(f"{self.where}: its rows were predicted from {', '.join(fields.names)}")
        return columns

    def find(self, rows: Any, *wanted: Wanted) -> Originals:
        """Read the originals of rows; errors: as `Partition.images`.

        Args:
            rows: A table with the columns `row_id` and `uri`, or ids.
            wanted: Images, texts or both.
        """
        asked, columns = _asked(rows), self.columns(*wanted)
        reader, plan = self.reader, self.plan
        if _are_fetched(reader, plan):
            tables: Iterable[pa.Table] = [_fetch_rows(reader, asked)]
        else:
            shards = _by_shard(reader, plan, asked, self.where)
            tables = (t for extents, ids in shards for t in _read_rows(reader, plan, extents, ids))
        originals = {
            row[ROW_ID]: _original(reader.source, row, columns, plan.fields)
            for table in tables
            for row in table.to_pylist()
        }
        missing = partial(Original, problem="is no longer in the input")
        return Originals([originals.get(row_id) or missing(row_id, uri) for row_id, uri in asked])


def _asked(rows: Any) -> list[tuple[str, str]]:
    """Return id and URI of rows; the URI is empty if it is not given."""
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
    """Return a small JPEG as an HTML element, or the reason why there is none."""
    from base64 import b64encode

    try:
        small = original.thumbnail(_THUMBNAIL_PX, _THUMBNAIL_BYTES)
    except JobError as error:
        return f"<small>{cell(error)}</small>"
    data = b64encode(small.jpeg).decode()
    return f'<img alt="{cell(original.row_id)}" src="data:image/jpeg;base64,{data}">'


def _are_fetched(reader: Reader, plan: Plan) -> bool:
    """Tell whether the URI of a row leads to its input, without its shard."""
    return columns_of(reader.source).is_fetched and plan.row_ids == "column"


def _fetch_rows(reader: Reader, asked: Sequence[tuple[str, str]]) -> pa.Table:
    """Fetch the input of rows, given as id and URI; return a table of `reader.schema`."""
    ids, uris = [row_id for row_id, _ in asked], [uri for _, uri in asked]
    fetched = fetch_many(uris, policy_of(reader.source, reader.store.uri))
    failures = [result.failure and Failure(result.failure[0], READ, result.failure[1])
                for result in fetched]  # fmt: skip
    [field] = reader.fields
    return make_rows(reader, ids, uris, {field.name: [result.data for result in fetched]}, failures)


def _by_shard(
    reader: Reader, plan: Plan, asked: Sequence[tuple[str, str]], where: str
) -> Iterator[tuple[list[Extent], set[str]]]:
    """Yield the extents of each shard with wanted rows, and the ids of these rows.

    Args:
        reader: The reader of the input.
        plan: The stored plan.
        asked: Id and URI of rows; the URI names the shard if ids are a column.
        where: The output and partition, for messages.

    Raises:
        JobError: No shard of the plan has such a row.
    """
    extents: dict[str, list[Extent]] = {}
    for unit in plan.units:
        for extent in unit.extents:
            extents.setdefault(extent.path, []).append(extent)
    by_url = {reader.store.url(path): path for path in extents}
    ids: dict[str, set[str]] = {}
    for row_id, uri in asked:
        path = by_url.get(uri) if plan.row_ids == "column" else _shard_of(plan, row_id, extents)
        if path is None:
            hint = "; give a table with the column uri" if not uri else ""
            raise JobError(f"{where}: row {row_id} is not in its input{hint}")
        ids.setdefault(path, set()).add(row_id)
    for path, wanted in ids.items():
        yield extents[path], wanted


def _shard_of(plan: Plan, row_id: str, known: Mapping[str, Any]) -> str | None:
    """Return the shard that an id names, if the plan has it."""
    if row_id in known:
        return row_id
    if plan.row_ids == "path#row":
        path, _, number = row_id.rpartition("#")
        return path if path in known and number.isdecimal() else None
    path = row_id
    while path:  # a key in a tar, which may have slashes as well
        path = path.rpartition("/")[0]
        if path in known:
            return path
    return None


def _read_rows(
    reader: Reader, plan: Plan, extents: Sequence[Extent], ids: set[str]
) -> Iterator[pa.Table]:
    """Read a shard until all wanted rows are read; yield tables of `reader.schema`.

    Raises:
        InfraError: The shard has changed since the plan, or cannot be read.
    """
    numbers = None
    if plan.row_ids == "path#row" and not ids & {extents[0].path}:
        numbers = sorted(int(row_id.rpartition("#")[2]) for row_id in ids)
    unit = _unit(plan, extents, numbers)
    starts = frozenset(unit.bounds[:-1])
    left = set(ids)
    for _, _, rows in read_slices(reader, unit, starts):
        is_wanted = pa.array([row_id in left for row_id in rows.column(ROW_ID).to_pylist()])
        matches = rows.filter(is_wanted)
        left.difference_update(matches.column(ROW_ID).to_pylist())
        yield matches
        if not left:
            return


def _unit(plan: Plan, extents: Sequence[Extent], numbers: Sequence[int] | None) -> Unit:
    """Return a unit of the rows with these numbers in the shard; None: all rows."""
    if plan.counts_by_reading:
        rows = RowFilter() if numbers is None else RowFilter(tuple(numbers))
        cut = UncountedPlan(_ROWS_AT_ONCE, _BYTES_AT_ONCE, rows=rows)
        return Unit(0, (replace(extents[0], only=None),), (), cut)
    chosen = list(extents)
    if numbers is not None:
        wanted = [[n for n in numbers if n in extent.numbers()] for extent in extents]
        chosen = [extent.choose(some) for extent, some in zip(extents, wanted, strict=True) if some]
    total = sum(extent.num_rows for extent in chosen)
    return Unit(0, tuple(chosen), (*range(0, total, _ROWS_AT_ONCE), total))
