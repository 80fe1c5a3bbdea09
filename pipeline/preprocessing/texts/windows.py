"""Cut long texts into windows, which a model sees one by one, and fold what it gives of them.

As by `stride` and `return_overflowing_tokens` of transformers: a window has at most `max_tokens`
tokens with the special ones, and neighbours have `overlap` tokens of the text in common.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import as_array
from pipeline.core.failures import FAILURE_COLUMNS
from pipeline.core.schema import NUM_TOKENS, OFFSETS, ROW_ID, TOKEN_IDS, TOKEN_TYPES
from pipeline.preprocessing.texts.text_settings import TextSettings, WindowSettings

_Numbers = npt.NDArray[np.int64]
_Floats = npt.NDArray[np.floating]


class Windows(NamedTuple):
    """The W windows of N rows, row after row; a row has at least one."""

    rows: pa.Table
    """W prepared rows: id, failure and tokens; a window of a row with an error has it, too."""
    owners: _Numbers
    """(W,): the row of each window, ascending."""
    spans: _Numbers
    """(W, 2): start and end in characters of the text."""
    cutting: WindowSettings
    step: int
    """Tokens of the text from the start of a window to that of the next."""

    @property
    def firsts(self) -> _Numbers:
        """The first window of each row, (N,)."""
        return np.flatnonzero(np.diff(self.owners, prepend=-1))

    def means(self, values: _Floats) -> npt.NDArray[np.float32]:
        """Return the mean over the windows of each row, (N, ...), of values (W, ...)."""
        sums = np.add.reduceat(values, self.firsts, axis=0, dtype=np.float64)
        counts = np.bincount(self.owners).reshape(-1, *[1] * (values.ndim - 1))
        return (sums / counts).astype(np.float32)

    def maxima(self, values: _Floats) -> _Floats:
        """Return the maximum over the windows of each row, (N, ...), of values (W, ...)."""
        highest: _Floats = np.maximum.reduceat(values, self.firsts, axis=0)
        return highest

    def places(self, rows: _Numbers, positions: _Numbers) -> tuple[_Numbers, _Numbers]:
        """Return the window that counts for each token, and the place of the token there.

        Of an overlap the first half is of the earlier window, the second of the later one, so that
        each token has the window to whose middle it is nearest.

        Args:
            rows: (T,).
            positions: (T,): places of the tokens in the uncut rows.
        """
        overlap = self.cutting.overlap
        content = positions - self.cutting.before - (overlap - overlap // 2)
        lasts = np.bincount(self.owners)[rows] - 1
        numbers = np.clip(content // self.step, 0, lasts)
        return self.firsts[rows] + numbers, positions - numbers * self.step


def cut(text: TextSettings, cutting: WindowSettings, rows: pa.Table) -> Windows:
    """Cut prepared rows, whose tokens are those of whole texts."""
    counts = rows.column(NUM_TOKENS).fill_null(0).to_numpy().astype(np.int64)
    before, special = cutting.before, cutting.before + cutting.after
    room = text.max_tokens - special
    step = room - cutting.overlap
    content = np.maximum(counts - special, 0)
    numbers = 1 + np.maximum(-((room - content) // step), 0)
    owners = np.arange(len(counts)).repeat(numbers)
    starts = (np.arange(len(owners)) - (numbers.cumsum() - numbers).repeat(numbers)) * step
    lengths = np.minimum(content[owners] - starts, room)
    sizes = np.where(counts[owners] > 0, lengths + special, 0)
    row_starts = (counts.cumsum() - counts)[owners]
    window = np.arange(len(sizes)).repeat(sizes)
    place = np.arange(len(window)) - (sizes.cumsum() - sizes)[window]
    is_text = (place >= before) & (place < before + lengths[window])
    skipped = np.where(is_text, starts[window], (counts[owners] - sizes)[window])
    tokens = row_starts[window] + place + np.where(place < before, 0, skipped)
    # A window has nothing else of its row: the text of a long row times its windows fills memory.
    kept = [name for name in (ROW_ID, *FAILURE_COLUMNS) if name in rows.column_names]
    columns = {name: rows.column(name).take(pa.array(owners)) for name in kept}
    until = pa.array(np.concatenate([[0], sizes.cumsum()]), pa.int32())
    for name in (TOKEN_IDS, TOKEN_TYPES):
        if name in rows.column_names:
            values = as_array(rows.column(name)).flatten().take(pa.array(tokens))
            columns[name] = pa.ListArray.from_arrays(until, values)
    columns[NUM_TOKENS] = pa.array(sizes, pa.int32())
    offsets = as_array(rows.column(OFFSETS)).flatten().to_numpy().reshape(-1, 2).astype(np.int64)
    spans = np.zeros((len(owners), 2), np.int64)
    filled = np.flatnonzero(lengths > 0)
    firsts = row_starts[filled] + before + starts[filled]
    spans[filled, 0] = offsets[firsts, 0]
    spans[filled, 1] = offsets[firsts + lengths[filled] - 1, 1]
    return Windows(pa.table(columns), owners, spans, cutting, step)
