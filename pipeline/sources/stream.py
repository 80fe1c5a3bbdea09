"""The rows of extents in order, whatever the format; some of them are read ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence

import numpy as np
import pyarrow as pa

from pipeline.core.errors import AccessDenied
from pipeline.sources.extents import Extent, UncountedPlan
from pipeline.sources.rows import Reader, changed, require_unchanged
from pipeline.sources.source_format import Piece, format_of

_FILES_AT_ONCE = 64


class Stream:
    """The rows of extents."""

    def __init__(
        self, reader: Reader, extents: Sequence[Extent], cut: UncountedPlan | None = None
    ) -> None:
        """Open nothing yet.

        Args:
            cut: Which rows are read, if only reading counts them.
        """
        self._reader, self._cut = reader, cut
        self._form = format_of(reader.source)
        self._last = extents[-1]
        self._left = deque(extents)
        """Extents that were not opened."""
        self._open: Generator[Piece, None, None] | None = None
        self._ahead: Piece | None = None
        self._num_read = self._num_taken = 0
        self._unchecked: list[Extent] = []
        """Open, or opened since the last rows were taken."""

    def take(self, max_rows: int, max_bytes: int) -> pa.Table:
        """Return the next rows, one even if it is too large; without rows only if none are left.

        Raises:
            InfraError: The store failed, or a shard changed since it was planned.
        """
        if self._cut is not None and self._cut.max_rows is not None:
            max_rows = min(max_rows, self._cut.max_rows - self._num_taken)
        taken: list[Piece] = []
        while max_rows and not self.is_at_end(max_rows):
            assert self._ahead is not None, "not at the end"
            is_more = len(self._ahead) > max_rows
            sizes = (self._ahead.take(slice(max_rows)) if is_more else self._ahead).sizes
            num_rows = int(np.searchsorted(np.cumsum(sizes), max_bytes, "right"))
            num_rows = max(num_rows, 0 if taken else 1)  # one that is too large by itself
            if not num_rows:
                break
            taken.append(self._advance(num_rows))
            max_rows -= len(taken[-1])
            max_bytes -= int(sizes[:num_rows].sum())
        for extent in self._unchecked:
            self._require_unchanged(extent)
        del self._unchecked[:-1]
        tables = [piece.to_table() for piece in taken]
        return pa.concat_tables(tables or [self._reader.schema.empty_table()])

    def skip(self, num_rows: int) -> None:
        """Skip the next rows, reading as little as possible.

        Raises:
            InfraError: Fewer rows are left, so a shard changed since they were staged.
        """
        while num_rows:
            if not self._has_ahead() and self._left and self._left[0].num_rows:
                extent = self._left.popleft()
                if num_rows < extent.num_rows:
                    self._left.appendleft(extent.piece(num_rows, extent.num_rows - num_rows))
                num_rows -= min(num_rows, extent.num_rows)
            elif self.is_at_end():
                raise changed(self._reader.store, self._last)
            else:
                num_rows -= len(self._advance(num_rows))

    def is_at_end(self, max_rows: int = 1) -> bool:
        """Tell whether no rows are left; if there are, some are read: of files at most so many."""
        if self._cut is not None and self._num_taken == self._cut.max_rows:
            return True
        while not self._has_ahead():
            if not self._left:
                return True
            is_file = self._form.counts_rows == "listing"
            at_once = min(max_rows, _FILES_AT_ONCE, len(self._left)) if is_file else 1
            self._open = self._read([self._left.popleft() for _ in range(at_once)])
        return False

    def close(self) -> None:
        """Close the open shard, which a reference cycle would keep open."""
        if self._open is not None:
            self._open.close()
        self._open = self._ahead = None

    def _has_ahead(self) -> bool:
        """Read on in the open extent if no rows are left of it; tell whether there are rows."""
        while not self._ahead and self._open is not None:
            self._ahead = next(self._open, None)
            if self._ahead is None:
                self._open = None
        return bool(self._ahead)

    def _advance(self, num_rows: int) -> Piece:
        """Take at most so many rows off those that are read ahead."""
        piece = self._ahead
        assert piece is not None, "not at the end"
        self._ahead = None
        if num_rows < len(piece):
            piece, self._ahead = piece.take(slice(num_rows)), piece.take(slice(num_rows, None))
        self._num_taken += len(piece)
        return piece

    def _read(self, extents: Sequence[Extent]) -> Generator[Piece, None, None]:
        cut = self._cut
        if cut is None:
            yield from self._form.read(self._reader, extents, lambda row: True)
            return
        before = self._num_read
        self._require_unchanged(extents[0])
        if not self._reader.store.is_object_store:  # an object cannot change while it is open
            self._unchecked += extents
        for piece in self._form.read(self._reader, extents, lambda row: cut.needs(before + row)):
            if cut.rows.is_past(self._num_read):
                self._left.clear()
                return
            rows = range(self._num_read, self._num_read + len(piece))
            self._num_read = rows.stop
            # The row that stands for the unreadable rest of a shard is always yielded.
            if cut.rows.only is not None and not piece.is_rest:
                chosen = [i for i, row in enumerate(rows) if cut.rows.number(row) is not None]
                piece = piece.take(np.array(chosen, np.int64))
            yield piece

    def _require_unchanged(self, extent: Extent) -> None:
        try:
            require_unchanged(self._reader.store, extent)
        except FileNotFoundError:
            raise changed(self._reader.store, extent) from None
        except AccessDenied:
            pass  # that it cannot be read either becomes the reason of its rows
