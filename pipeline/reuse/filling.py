"""Read the slices of a unit: known rows from their version, the others from the source.

Out: packed slices. The rows that go through the stages are as the source yields them; beside them
travel the known rows (`core/rows_set_aside.py`). A version that cannot be read is not asked again
by this reader: its rows are computed, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.commit.staging import StagedSlice, StagingWriter
from pipeline.core.arrays import Numbers, as_array
from pipeline.core.errors import InfraError
from pipeline.core.failures import Reason, failure_columns, failures_of
from pipeline.core.figures import READ, Counters, LookedUp, SliceFigures, measure, merge
from pipeline.core.printable import clean_message
from pipeline.core.row_digests import HASH_BYTES, input_hashes
from pipeline.core.rows_set_aside import NOT_READ
from pipeline.core.schema import INPUT_HASH, INPUT_HASH_FIELD, IS_COMPUTED, SOURCE
from pipeline.core.slices import SliceKey, pack, unpack
from pipeline.process.liveness import note_progress
from pipeline.reuse.checked_sample import are_drawn
from pipeline.reuse.dividing import Known, known_slices
from pipeline.reuse.version_rows import UNKNOWN, PartReader, Version
from pipeline.sources.rows import Reader
from pipeline.sources.source_format import failed_rows
from pipeline.sources.units import RowFilter, Unit, only_rows

Read = Callable[[Unit, frozenset[int]], Iterable[pa.Table]]
"""Reads some slices of a unit, packed."""
_MOST_CHECKED = 32
"""Computed rows of a slice beyond twice the usual number; with more, the slice is halved."""


def stage_known(
    known: Known, writer: StagingWriter, units: Mapping[Unit, frozenset[int]]
) -> list[StagedSlice]:
    """Stage the slices whose rows are all known and can be read.

    Args:
        known: The known rows.
        writer: Writes the slices.
        units: Unit -> first rows of its slices to stage, as for `read_slices`.
    """
    staged, filler = [], Filler(known)  # one filler, so that slices share its row groups
    for unit, starts in units.items():
        for key in known_slices(unit, starts, known.counts.get(unit.index), known.most_rows):
            if not filler.known.num_computed(key):
                counters: Counters = {}
                aside = filler.fill(key, counters)
                if not aside.missing.any():
                    note_progress("took a slice over")
                    rows = known.schema.empty_table()
                    staged.append(writer.write(key, counters, rows, aside.table(known)))
    return staged


class Filler:
    """Reads the slices of units, known rows and others."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self._readers: dict[tuple[int, bool], PartReader] = {}
        self._broken: dict[int, str] = {}
        """Number of a version that could not be read -> message."""

    def slices(
        self, reader: Reader, unit: Unit, starts: frozenset[int], read: Read
    ) -> Iterator[pa.Table]:
        """Yield some slices of a unit, packed.

        Args:
            reader: The reader of the source.
            unit: The unit.
            starts: First rows of the slices, as for `read_slices`.
            read: Reads slices of the unit, or of some of its rows, with that reader.
        """
        known, count = self.known, self.known.counts.get(unit.index)
        is_unknown = not len(known.runs) and known.failures is None
        if is_unknown or (unit.cut is not None and count is None):
            for block in read(unit, starts):
                for key, counters, rows, _ in unpack(block):
                    yield from self._read_anew(reader, unit, key, counters, rows)
            return
        for key in known_slices(unit, starts, count, known.most_rows):
            yield from self._slice(reader, unit, key, read)

    def _read_anew(
        self, reader: Reader, unit: Unit, key: SliceKey, counters: Counters, rows: pa.Table
    ) -> Iterator[pa.Table]:
        """Yield a slice whose rows were all read.

        If its shard breaks off earlier than before, the rows that are no longer reached follow as
        known rows, and the last row of the slice stands for the rest behind them.
        """
        end = self.known.broken_off.get(unit.index, 0)
        failure = next(iter(failures_of(rows.slice(max(0, rows.num_rows - 1)))), None)
        if (
            failure is None
            or failure.reason != Reason.UNREADABLE_SHARD
            or not (key.is_last and key.end < end)
        ):
            yield self._packed(key, counters, _Aside(key.num_rows), np.arange(key.num_rows), rows)
            return
        reached, last = key.end - 1, rows.slice(rows.num_rows - 1)
        if reached > key.start:
            key, rows = replace(key, end=reached, is_last=False), rows.slice(0, rows.num_rows - 1)
            yield self._packed(key, counters, _Aside(key.num_rows), np.arange(key.num_rows), rows)
        for start in range(reached, end, self.known.most_rows):
            until = min(end, start + self.known.most_rows)
            tail = SliceKey(unit.index, start, until, is_last=until == end)
            aside = self.fill(tail, counters := {})
            at = np.flatnonzero(aside.missing)
            tables = [reader.schema.empty_table()]
            if numbers := (start + at[start + at < end - 1]).tolist():
                tables.append(failed_rows(reader, unit.extents[0].choose(numbers), 0, failure))
            tables += [last] if tail.is_last else []
            yield self._packed(tail, counters, aside, at, pa.concat_tables(tables))

    def _slice(self, reader: Reader, unit: Unit, key: SliceKey, read: Read) -> Iterator[pa.Table]:
        counters: Counters = {}
        aside = self.fill(key, counters)
        at = np.flatnonzero(aside.missing | self.known.are_checked(key))
        if len(at) > 2 * self.known.usual_rows + _MOST_CHECKED and key.num_rows > 1:
            for half in key.halves():
                yield from self._slice(reader, unit, half, read)
            return
        rows = reader.schema.empty_table()
        if len(at):
            rows = _read_rows(reader, unit, key.start + at, read, counters)
        yield self._packed(key, counters, aside, at, rows)

    def fill(self, key: SliceKey, counters: Counters) -> _Aside:
        """Return the known rows of a slice that can be read."""
        aside = _Aside(key.num_rows)
        version, ordinal = self.known.places(key)
        for number in np.unique(version[version != UNKNOWN]).tolist():
            at = np.flatnonzero(version == number)
            rows = self._read(number, ordinal[at], counters, is_whole=True)
            if rows is not None:
                aside.add(at, rows, self.known.versions[number].source)
        at, rows = self.known.failed(key)
        if rows is not None and len(at):
            aside.add(at, rows, self.known.versions[0].source)
        return aside

    def _read(
        self, number: int, ordinals: Numbers, counters: Counters, *, is_whole: bool
    ) -> pa.Table | None:
        """Read rows of a version, whole or only their task columns; None if that fails."""
        if number in self._broken:
            SliceFigures(advice={self._broken[number]: len(ordinals)}).add_to(counters)
            return None
        version = self.known.versions[number]
        try:
            if (number, is_whole) not in self._readers:
                schema = self._columns(version, is_whole=is_whole)
                self._readers[number, is_whole] = PartReader(version, schema)
            return self._readers[number, is_whole].at(ordinals)
        except Exception as error:  # noqa: BLE001  # after any error, the rows are computed
            self._give_up(number, error, len(ordinals), counters)
            return None

    def _columns(self, version: Version, *, is_whole: bool) -> pa.Schema:
        left_out = {*failure_columns([]), *(() if is_whole else self.known.source_columns)}
        fields = [field for field in self.known.schema if field.name not in left_out]
        takes_hash = self.known.hashes and version.has_hashes
        return pa.schema([*fields, *([INPUT_HASH_FIELD] if takes_hash else [])])

    def _give_up(self, number: int, error: Exception, num_rows: int, counters: Counters) -> None:
        text = f"{NOT_READ}: {clean_message(str(error) or repr(error), 200)}"
        self._broken[number] = text
        SliceFigures(advice={text: num_rows}).add_to(counters)

    def _packed(
        self,
        key: SliceKey,
        counters: Counters,
        aside: _Aside,
        at: Numbers,
        rows: pa.Table,
    ) -> pa.Table:
        """Pack a slice whose rows `at` were read."""
        known = self.known
        with measure(counters, READ):
            goes_on = np.ones(len(at), bool)
            if known.hashes and len(at):
                hashes = input_hashes(rows, [*known.inputs])
                aside.hash(at, hashes)
                if known.indices:
                    goes_on = self._look_up(aside, at, rows, hashes, counters)
            aside.is_computed[at[goes_on]] = True
            going = rows if goes_on.all() else rows.filter(pa.array(goes_on))
            return pack(key, counters, going, aside.table(known))

    def _look_up(
        self,
        aside: _Aside,
        at: Numbers,
        rows: pa.Table,
        hashes: pa.Array,
        counters: Counters,
    ) -> npt.NDArray[np.bool_]:
        """Look read rows up by their content; return which are computed, bool (M,)."""
        known, started = self.known, perf_counter()
        asked = np.flatnonzero(np.asarray(hashes.is_valid()) & aside.missing[at])
        data = b"".join(hashes.take(pa.array(asked)).to_pylist())
        keys = np.frombuffer(data, np.uint8).reshape(-1, HASH_BYTES)
        goes_on, is_left = np.ones(len(at), bool), np.ones(len(asked), bool)
        num_known = num_failed = 0
        for index in known.indices:
            number = known.versions.index(index.version)
            left = np.flatnonzero(is_left)
            if number in self._broken or not len(left):
                continue
            try:
                ordinals = index.find(keys[left])
            except Exception as error:  # noqa: BLE001  # after any error, the rows are computed
                self._give_up(number, error, 0, counters)
                continue
            hit = left[ordinals != UNKNOWN]
            predictions = (
                self._read(number, ordinals[ordinals != UNKNOWN], counters, is_whole=False)
                if len(hit)
                else None
            )
            if predictions is None:
                continue
            places = asked[hit]
            if predictions.column(INPUT_HASH).to_pylist() != hashes.take(places).to_pylist():
                why = InfraError(f"{index.version.name}: the index of its hashes is damaged")
                self._give_up(number, why, len(hit), counters)
                continue
            columns = rows.select([*known.source_columns]).take(pa.array(places))
            for name in predictions.drop_columns(INPUT_HASH).column_names:
                columns = columns.append_column(name, predictions.column(name))
            aside.add(at[places], columns, index.version.source)
            is_left[hit] = False
            goes_on[places] = are_drawn(keys[hit], known.checked_probability, known.seed)
            num_known += int((~goes_on[places]).sum())
        if self._broken:
            num_failed = int(is_left.sum())
        figure = LookedUp(len(asked), num_known, num_failed, perf_counter() - started)
        SliceFigures(looked_up=figure).add_to(counters)
        return goes_on


class _Aside:
    """Builds the table beside a slice of N rows."""

    def __init__(self, num_rows: int) -> None:
        self.missing = np.ones(num_rows, bool)
        """bool (N,): rows that are not known."""
        self.is_computed = np.zeros(num_rows, bool)
        self._pieces: list[tuple[Numbers, pa.Table, str]] = []
        self._hashes: list[tuple[Numbers, pa.Array]] = []

    def add(self, at: Numbers, rows: pa.Table, source: str) -> None:
        """Add known rows: their index in the slice, ascending; their columns; their version."""
        if INPUT_HASH in rows.column_names:
            self.hash(at, as_array(rows.column(INPUT_HASH)))
        self._pieces.append((at, rows, source))
        self.missing[at] = False

    def hash(self, at: Numbers, hashes: pa.Array) -> None:
        """Add hashes of rows."""
        self._hashes.append((at, hashes))

    def table(self, known: Known) -> pa.Table:
        """Return the table that `core.rows_set_aside` describes."""
        columns = {IS_COMPUTED: pa.array(self.is_computed)}
        sources = [(at, pa.array([source] * len(at))) for at, _, source in self._pieces]
        columns[SOURCE] = self._spread(sources, pa.string())
        if known.hashes:
            columns[INPUT_HASH] = self._spread(self._hashes, INPUT_HASH_FIELD.type)
        for name, column_type in zip(known.schema.names, known.schema.types, strict=True):
            pieces = [
                (at, as_array(rows.column(name)))
                for at, rows, _ in self._pieces
                if name in rows.column_names
            ]
            columns[name] = self._spread(pieces, column_type)
        return pa.table(columns)

    def _spread(
        self, pieces: Sequence[tuple[Numbers, pa.Array]], column_type: pa.DataType
    ) -> pa.Array:
        """Return a column of N rows, null where no piece has the row."""
        if not pieces:
            return pa.nulls(len(self.missing), column_type)
        values = pa.concat_arrays([values.cast(column_type) for _, values in pieces])
        places = np.full(len(self.missing), UNKNOWN, np.int64)
        places[np.concatenate([at for at, _ in pieces])] = np.arange(len(values))
        return values.take(pa.array(places, mask=places == UNKNOWN))


def _read_rows(
    reader: Reader, unit: Unit, rows: Numbers, read: Read, counters: Counters
) -> pa.Table:
    """Read some rows of a unit; rows behind the end of a shard that breaks off fail.

    Args:
        reader: The reader of the source.
        unit: The unit.
        rows: Numbers of the rows in the unit, ascending.
        read: As for `Filler.slices`.
        counters: Figures of reading are added here.

    Raises:
        InfraError: The source has another number of rows.
    """
    if unit.cut is None:
        subset = only_rows(unit, rows.tolist())
    else:
        cut = replace(unit.cut, rows=RowFilter(tuple(rows.tolist())), done=())
        subset = replace(unit, cut=cut)
    tables = [reader.schema.empty_table()]
    for block in read(subset, frozenset([0])):
        for _, counted, piece, _ in unpack(block):
            counters.update(merge(counters, counted))
            tables.append(piece)
    table = pa.concat_tables(tables)
    kept = table.num_rows - 1
    last = next(iter(failures_of(table.slice(max(0, kept)))), None)
    if unit.cut is None or last is None or last.reason != Reason.UNREADABLE_SHARD:
        if table.num_rows == len(rows):
            return table
        raise InfraError(
            f"{reader.store.url(unit.extents[0].path)}: {table.num_rows} rows were read, expected "
            f"{len(rows)}; nothing was written, run again"
        )
    # The last row stands for all rows from there on.
    rest = unit.extents[0].choose(rows[kept:].tolist())
    failed = failed_rows(reader, rest, 0, last)
    return pa.concat_tables([table.slice(0, kept), failed])
