"""Cut the rows of the inputs into units and slices.

A unit is the grain of reading (one call of a reader), a slice that of resuming (one staged part).
Both are cut by rows, so that many small shards share a unit and a huge shard becomes several.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.core.registry import TASKS, load
from pipeline.job.job import Job
from pipeline.preprocessing.model_input import SliceRows, slice_rows_of
from pipeline.sources.source_format import format_of
from pipeline.sources.units import MAX_SLICE_BYTES, Extent, UncountedPlan, Unit

_MIB = 1024 * 1024
_BYTES_NEAR = 48 * _MIB
_SMALL_ROW_BYTES = 16 * 1024
_SMALLEST_CPU_BATCH = 8
_SLICES_LEFT = 4
_MAX_UNIT_SLICES = 8
_IF_KNOWN = 4
_SLICES_PER_UNIT_SLICE = 64
_USUAL = SliceRows()
_NEW_TOKENS, _BATCHES = {False: 16_384, True: 131_072}, 4
"""Slices of texts that a model writes: the most new tokens on CPU and on GPU, which are two batches
of `model.batch_tokens`, and the most batches of `model.batch_size`."""
_FEWEST_WRITTEN, _FEWEST_ON_CPU = 16, 32
"""Their fewest rows, and the fewest if smaller slices only serve to give all actors as many."""
_CHOICES_NEAR, _CHOICES_SMALL, _CHOICES_BYTES, _CHOICES_UNCOUNTED = 32, 512, 128 * 1024, 256
"""Slices of task `choices` on CPU, as in `SliceRows`: 128 KiB of texts are about 32,000 tokens of
prompts. With SmolLM2 a core reads 430 of them per second, and answers 10 rows/s of short texts."""


@dataclass(frozen=True)
class SliceSizes:
    """The number of rows of the slices of a job.

    Each slice costs tens of milliseconds of CPU time on the driver, the reader and the writer,
    whatever its size; but while the last slices are computed, some actors are idle. So slices are
    large and become smaller towards the end, as in guided self-scheduling (Polychronopoulos and
    Kuck, 1987). Large images, which take longer, have small slices from the beginning. Texts share
    batches with texts of similar length, of which a larger slice has more: with docstrings (47
    tokens on average, 4,096 per batch) padding is 30% of the computed tokens in slices of 256 rows,
    22% in 512, 16% in 1,024, 12% in 2,000. Rows of a table take microseconds: their slices take a
    third of a second with a small network; slices of a quarter of that made 7% fewer rows/s. A row
    group is read by one task, from its beginning, because reading it is cheap and skipping is not.

    If most rows are known from earlier versions, few rows of a slice reach the model, and its
    batches are filled from one slice: slices then have four times the rows, within the same bytes.

    If a model writes, that is most of the work of its rows: slices then have a constant number of
    new tokens, also towards the end. See `written_rows`.
    """

    most: int
    """Most rows per slice."""
    batch_size: int = 1
    smallest: int = 1
    """Fewest rows per slice of large images."""
    most_small: int = 0
    """`most` for rows of few bytes."""
    bytes_near: int = 0
    """For texts, the bytes of a slice between `most` and `most_small` rows; 0 for other inputs."""
    uncounted: int = 0
    """Rows per slice if only reading counts them; 0: `most`."""
    weight: float = 1.0
    """Factor for the bytes of a row."""
    is_fixed: bool = True
    """The job sets `run.slice_rows`: every slice has `most` rows."""
    few: int = _USUAL.few
    """Fewest rows per slice towards the end."""
    max_units: int = _USUAL.max_units
    """Most units that a row group is cut into."""

    @classmethod
    def of(
        cls,
        job: Job,
        batch_size: int,
        task: str,
        num_rows: int | None = None,
        *,
        are_mostly_known: bool = False,
    ) -> SliceSizes:
        """Return the slice sizes of a job.

        Args:
            batch_size: Rows per model call, as known before tuning.
            task: As in the job or the model directory.
            num_rows: Rows to cut; None if unknown.
            are_mostly_known: Rows are looked up in an earlier version.
        """
        if job.run.slice_rows:
            return cls(job.run.slice_rows)
        rows = _rows_of(job, batch_size, task, num_rows)
        size = batch_size if rows.has_batches else 1
        is_open = job.model.batch_size is None and not job.resources.num_gpus
        more = _IF_KNOWN if are_mostly_known else 1
        uncounted = _multiple(rows.uncounted, size) if rows.uncounted >= size else rows.uncounted
        return cls(
            more * _multiple(rows.near, size),
            size,
            min(size, _SMALLEST_CPU_BATCH) if is_open else size,
            more * _multiple(rows.small_near, size),
            more * rows.bytes_near,
            more * uncounted,
            rows.weight,
            is_fixed=False,
            few=rows.few,
            max_units=rows.max_units,
        )

    def at(self, rows_left: int, row_bytes: float) -> int:
        """Return the rows of the next slice.

        Args:
            rows_left: Rows of the input from this slice on.
            row_bytes: Mean encoded bytes per row of the unit.
        """
        if self.is_fixed:
            return self.most
        most = min(self._near(row_bytes), _BYTES_NEAR / max(self.weight * row_bytes, 1.0))
        rows = min(most, max(float(self.few), rows_left / _SLICES_LEFT))
        if rows >= self.batch_size:
            return _multiple(rows, self.batch_size)
        return min(self.batch_size, _multiple(rows, self.smallest))

    def _near(self, row_bytes: float) -> float:
        """Return the rows of a slice in the middle of the input."""
        if self.bytes_near and row_bytes > 0:
            return min(self.most_small, max(self.most, self.bytes_near / row_bytes))
        return self.most_small if 0 < row_bytes <= _SMALL_ROW_BYTES else self.most


def written_rows(
    new_tokens: int, batch_size: int, num_rows: int | None = None, *, is_on_gpu: bool = False
) -> int:
    """Return the rows of each slice of texts that a model writes.

    A run that is killed loses the unfinished slices of its actors: with SmolLM2 on two cores, which
    write 75 tokens/s each, 64 rows of up to 128 tokens are less than two minutes. A slice fills
    batches of its own, and the last batch runs empty while its longest text is written: slices of
    13 rows made 54 tokens/s where slices of 64 rows made 103. On a CPU, where slices are few, their
    number is a multiple of four, so that one, two or four actors get as many. On a GPU a step takes
    as long for few rows as for many.

    Args:
        new_tokens: The most per row, at least 1.
        batch_size: The most rows that are written at once.
        num_rows: Of all slices; None if unknown.
        is_on_gpu: Whether an actor has a GPU.
    """
    most = min(_NEW_TOKENS[is_on_gpu] // new_tokens, _BATCHES * batch_size)
    most = max(_FEWEST_WRITTEN, most)
    if is_on_gpu or not num_rows:
        return most
    num_slices = _SLICES_LEFT * math.ceil(num_rows / (_SLICES_LEFT * most))
    return min(most, max(_FEWEST_ON_CPU, math.ceil(num_rows / num_slices)))


def _rows_of(job: Job, batch_size: int, task: str, num_rows: int | None) -> SliceRows:
    """Return the rows of the slices of a job; few if a language model takes long per row."""
    rows, is_on_gpu = slice_rows_of(job), bool(job.resources.num_gpus)
    if new_tokens := load(TASKS, task).new_tokens(job.model):
        near = written_rows(new_tokens, batch_size, num_rows, is_on_gpu=is_on_gpu)
        if rows.has_batches:  # clips and images take far more memory than texts
            near = min(near, rows.small_near)
        return SliceRows(near, near, few=near, has_batches=False, weight=rows.weight)
    if not job.model.choices or not rows.bytes_near or is_on_gpu:
        return rows
    return rows._replace(
        near=_CHOICES_NEAR,
        small_near=_CHOICES_SMALL,
        bytes_near=_CHOICES_BYTES,
        uncounted=_CHOICES_UNCOUNTED,
    )


def _multiple(rows: float, of: int) -> int:
    return of * max(1, round(rows / of))


def units_of(job: Job, extents: Sequence[Extent], batch_size: int, task: str) -> Iterator[Unit]:
    """Cut the listed extents of a job; the other arguments are those of `SliceSizes.of`."""
    if format_of(job.source).counts_rows == "reading" and job.source.where is None:
        sizes = SliceSizes.of(job, batch_size, task)
        rows = sizes.uncounted or sizes.most
        return _uncounted_units(extents, rows, job.run.limit_rows)
    limited = _limit(extents, job.run.limit_rows)
    num_rows = sum(extent.num_rows for extent in limited)
    return make_units(limited, SliceSizes.of(job, batch_size, task, num_rows))


def _uncounted_units(
    extents: Sequence[Extent], slice_rows: int, limit_rows: int | None
) -> Iterator[Unit]:
    """Make a unit per shard; with a limit one unit of all, because its reader counts the rows."""
    groups = [(extent,) for extent in extents] if limit_rows is None else [tuple(extents)]
    cut = UncountedPlan(slice_rows, MAX_SLICE_BYTES, limit_rows)
    for index, group in enumerate(groups if extents else []):
        yield Unit(index, group, bounds=(), cut=cut)


def _limit(extents: Sequence[Extent], limit_rows: int | None) -> list[Extent]:
    if limit_rows is None:
        return list(extents)
    kept: list[Extent] = []
    left = limit_rows
    for extent in extents:
        if left <= 0:
            break
        kept.append(extent.piece(0, min(extent.num_rows, left)))
        left -= kept[-1].num_rows
    return kept


def make_units(extents: Sequence[Extent], sizes: SliceSizes) -> Iterator[Unit]:
    """Cut counted extents into units of one or several slices."""
    left = sum(extent.num_rows for extent in extents)
    row_bytes = mean_row_bytes(extents)
    pending: list[Extent] = []
    rows = index = 0
    wanted = _unit_rows(sizes.at(left, row_bytes), left)
    for extent in _split_large(extents, sizes, wanted):
        pending.append(extent)
        rows += extent.num_rows
        if rows >= wanted:
            yield _make_unit(index, pending, sizes, left)
            pending, rows, index, left = [], 0, index + 1, left - rows
            wanted = _unit_rows(sizes.at(left, row_bytes), left)
    if pending:
        yield _make_unit(index, pending, sizes, left)


def _unit_rows(slice_rows: int, rows_left: int) -> int:
    """Return the rows of a unit; large inputs have units of several slices."""
    slices = rows_left // (slice_rows * _SLICES_PER_UNIT_SLICE)
    return slice_rows * min(_MAX_UNIT_SLICES, max(1, slices))


def _split_large(extents: Sequence[Extent], sizes: SliceSizes, unit_rows: int) -> Iterator[Extent]:
    """Cut extents far larger than a unit into a few pieces: each reads its row group from row 0."""
    for extent in extents:
        pieces = min(sizes.max_units, extent.num_rows // unit_rows)
        if pieces < 2 or extent.reason is not None:
            yield extent
            continue
        piece_rows = -(-extent.num_rows // (pieces * sizes.most)) * sizes.most
        for offset in range(0, extent.num_rows, piece_rows):
            yield extent.piece(offset, min(piece_rows, extent.num_rows - offset))


def _make_unit(index: int, extents: Sequence[Extent], sizes: SliceSizes, rows_left: int) -> Unit:
    num_rows = sum(extent.num_rows for extent in extents)
    mean, heaviest = mean_row_bytes(extents), max(extent.row_bytes for extent in extents)
    bounds = [0]
    while bounds[-1] < num_rows:
        step = _bounded(sizes.at(rows_left - bounds[-1], mean), heaviest)
        bounds.append(min(num_rows, bounds[-1] + step))
    return Unit(index, tuple(extents), tuple(bounds))


def _bounded(rows: int, row_bytes: float) -> int:
    while rows > 1 and rows * row_bytes > MAX_SLICE_BYTES:
        rows = -(-rows // 2)
    return rows


def mean_row_bytes(extents: Sequence[Extent]) -> float:
    """Return the mean encoded bytes of a row."""
    num_rows = sum(extent.num_rows for extent in extents)
    return sum(extent.row_bytes * extent.num_rows for extent in extents) / max(1, num_rows)
