"""Input `text`: token ids per row; batches of rows of similar length, padded on the host."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.core.arrays import as_array
from pipeline.core.failures import Failure, RowError, failure_columns, failures_of
from pipeline.core.figures import TOKENIZE, Counters, SliceFigures, Tokenised, measure
from pipeline.core.row_digests import num_bytes, row_digests
from pipeline.core.schema import (
    ERROR,
    NUM_TOKENS,
    OFFSETS,
    TEXT,
    TEXT_OF,
    TEXT_PAIR,
    TOKEN_IDS,
    TOKEN_TYPES,
    TRUNCATED,
    WORD_IDS,
)
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Columns,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    Rows,
    SliceRows,
    Slot,
)
from pipeline.preprocessing.texts.text_settings import IDS, MASK, TYPES, TextSettings
from pipeline.preprocessing.texts.windows import Windows, cut
from pipeline.process.liveness import still_alive
from pipeline.sources.columns.arrow_types import is_text

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job
    from pipeline.preprocessing.texts.tokenizer import Tokens

_ROUND_TO = 8
"""Batches are padded to a multiple of this, so that a runtime gets few shapes."""
_LIKE, _PARTS = 0.85, 4
"""Rows of at least this fraction of the longest row's length are similar; a batch of at least a
quarter of the limit has only similar rows."""
_ROWS_AT_ONCE = 64
_TRIED = ("a", *["the cat and the dog sat; " * 6] * 2)
_USUAL = ("text", "content", "body", "sentence", "document", "passage")


@dataclass(frozen=True)
class TextInput(Input):
    """`input_ids`, `attention_mask`, and `token_type_ids` for pairs; each (B, L), int64."""

    text: TextSettings
    is_padded: bool = True
    """Whether a batch may have rows of several lengths."""
    is_single: bool = False
    """Whether each batch has one row."""
    name: ClassVar[str] = "text"
    stage_names: ClassVar[tuple[str, ...]] = (TOKENIZE,)
    takes: ClassVar[str] = "text"
    cost: ClassVar[Cost] = "text"
    how_to_name: ClassVar[str] = "takes texts: name their column with source.text_column"

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        if settings.text is None:
            raise ValueError("texts need a tokenizer")
        return cls(settings.text)

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return many rows, of any number, as batches are filled by tokens."""
        return SliceRows(512, 2_048, bytes_near=512 * 1024, uncounted=1_024, has_batches=False)

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        names = [f.name for f in rows.schema if is_text(f.type) and f.name not in ids]
        return (Columns("text_column", names, usual=_USUAL),)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {TOKENIZE: SEMANTICS[TOKENIZE]}

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        if self.text.new_tokens:  # a step of many rows takes no longer than of one
            return BatchLimits(256, 65_536) if is_on_gpu else BatchLimits(64, 8_192)
        return BatchLimits(1_024, 65_536) if is_on_gpu else BatchLimits(256, 1_024)

    def settings(self) -> dict[str, Any]:
        return self.text.to_dict()

    def fitted(self, fields: pa.Schema) -> Self:
        return replace(self, text=replace(self.text, has_pair=TEXT_PAIR in fields.names))

    def fields(self) -> list[pa.Field]:
        types = [pa.field(TOKEN_TYPES, pa.list_(pa.int8()))] if self.text.has_types else []
        names = (
            *((OFFSETS,) if self.text.has_offsets or self.text.windows else ()),
            *((WORD_IDS,) if self.text.has_offsets else ()),
        )
        places = [pa.field(name, pa.list_(pa.int32())) for name in names]
        return [pa.field(TOKEN_IDS, pa.list_(pa.int32())), *types, *places]

    def published_fields(self) -> list[pa.Field]:
        if self.text.new_tokens:
            return []  # the task publishes the length of prompts, and none is cut
        return [pa.field(NUM_TOKENS, pa.int32()), pa.field(TRUNCATED, pa.bool_())]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        """Tokenise rows without an error; the tokens of other rows are null."""
        todo = np.flatnonzero(rows.column(ERROR).is_null().to_numpy())
        failed: dict[int, Failure] = {}
        with measure(counters, TOKENIZE) as done:
            pieces = [
                self._tokenised_apart(rows, todo[first : first + _ROWS_AT_ONCE], failed)
                for first in range(0, len(todo), _ROWS_AT_ONCE)
            ]
            tokens = pa.concat_tables(pieces or [self._tokenised(rows, todo)])
            done.rows_in, done.rows_quarantined = len(todo), len(failed)
            done.rows_out = len(todo) - len(failed)
            done.bytes_in = pc.sum(pc.binary_length(rows.column(TEXT))).as_py() or 0
            done.bytes_out = tokens.column(TOKEN_IDS).nbytes
        cut = pc.sum(tokens.column(TRUNCATED)).as_py() or 0
        good = [row for row in todo.tolist() if row not in failed]
        SliceFigures(tokenised=Tokenised(len(good), cut)).add_to(counters)
        places: list[int | None] = [None] * rows.num_rows
        for index, row in enumerate(good):
            places[row] = index
        spread = tokens.take(pa.array(places, pa.int64()))
        consumed = () if self.text.has_offsets else self._names
        kept = [name for name in rows.column_names if name not in consumed]
        columns = {name: rows.column(name) for name in kept}
        columns.update({name: spread.column(name) for name in spread.column_names})
        if failed:
            failures = failures_of(rows)
            columns.update(failure_columns([f or failed.get(i) for i, f in enumerate(failures)]))
        return pa.table(columns)

    def _tokenised_apart(
        self, rows: pa.Table, chosen: Rows, failed: dict[int, Failure]
    ) -> pa.Table:
        """Return the columns of `_tokenised` without rows that fail, which go to `failed`."""
        try:
            return self._tokenised(rows, chosen)
        except RowError as error:
            if len(chosen) == 1:
                names = [name for name in self._names if name in rows.column_names]
                failed[int(chosen[0])] = _failure(error, rows.slice(int(chosen[0]), 1), names)
                return self._tokenised(rows, chosen[:0])
        still_alive()
        return pa.concat_tables(
            [self._tokenised_apart(rows, row, failed) for row in chosen.reshape(-1, 1)]
        )

    def _tokenised(self, rows: pa.Table, chosen: Rows) -> pa.Table:
        """Return the columns of `fields` and `published_fields` of some rows."""
        some = rows.select([c for c in self._names if c in rows.column_names])
        some = some.take(pa.array(chosen, pa.int64()))
        tokens = self._tokens_of(some)
        still_alive()
        ends = np.concatenate([[0], np.cumsum(tokens.counts)]).astype(np.int32)
        columns = {TOKEN_IDS: pa.ListArray.from_arrays(ends, tokens.ids)}
        if self.text.has_types:
            columns[TOKEN_TYPES] = pa.ListArray.from_arrays(ends, tokens.types)
        if self.text.has_offsets or self.text.windows:
            columns[OFFSETS] = pa.ListArray.from_arrays(2 * ends, tokens.offsets)
        if self.text.has_offsets:
            columns[WORD_IDS] = pa.ListArray.from_arrays(ends, tokens.word_ids)
        columns[NUM_TOKENS] = pa.array(tokens.counts)
        columns[TRUNCATED] = pa.array(tokens.truncated)
        return pa.table(columns)

    def _tokens_of(self, rows: pa.Table) -> Tokens:
        from pipeline.preprocessing.texts.prompts import tokens_of

        texts = {name: rows.column(name).to_pylist() for name in rows.column_names}
        if not self._places:
            texts = {name: texts[name] for name in (TEXT, TEXT_PAIR)[: 1 + self.text.has_pair]}
            return tokens_of(self.text, *texts.values())
        return tokens_of(self.text, *(texts[name] for name in self._places))

    @property
    def _places(self) -> tuple[str, ...]:
        """The columns in transit of the places of a prompt; () if it has the text alone."""
        columns = self.text.prompt.columns if self.text.prompt else ()
        return tuple(TEXT_OF + name if name else TEXT for name in columns)

    @property
    def _names(self) -> tuple[str, ...]:
        """The columns in transit of texts."""
        return tuple(dict.fromkeys((TEXT, TEXT_PAIR, *self._places)))

    def windows(self, rows: pa.Table) -> Windows | None:
        return cut(self.text, self.text.windows, rows) if self.text.windows else None

    def arrays(self, rows: pa.Table) -> Inputs:
        """Return `input_ids` (N, L), padded to the longest row, and `num_tokens` (N,), int32."""
        counts = rows.column(NUM_TOKENS).fill_null(0).to_numpy()
        arrays = {IDS: _padded(rows.column(TOKEN_IDS), counts, self.text.pad_id)}
        if self.text.has_types:
            arrays[TYPES] = _padded(rows.column(TOKEN_TYPES), counts, 0)
        return {**arrays, NUM_TOKENS: counts}

    def batches(self, inputs: Inputs, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Sort rows by length, the longest first, and fill batches up to `limits.tokens`.

        A batch with a quarter of the tokens ends before a row that is much shorter than its first.
        """
        order = rows[np.argsort(-inputs[NUM_TOKENS][rows].astype(np.int64), kind="stable")]
        lengths = inputs[NUM_TOKENS][order].astype(np.int64)
        batches, first = [], 0
        while first < len(order):
            longest = self._width(int(lengths[first]))
            fitting = max(1, limits.tokens // longest) if limits.tokens else limits.rows
            last = first + min(fitting, limits.rows)
            least = _LIKE * longest if self.is_padded else lengths[first]
            alike = first + int((lengths[first:last] >= least).sum())
            enough = first + max(1, -(-limits.tokens // (_PARTS * longest)))
            last = min(last, max(alike, enough) if self.is_padded else alike)
            last = first + 1 if self.is_single else last
            batches.append(order[first:last])
            first = last
        return batches

    def padding_trial(self) -> tuple[Inputs, Self, Self] | None:
        texts = pa.array(_TRIED)
        rows = pa.table(dict.fromkeys(self._names, texts))
        try:
            tried = self._tokenised(rows, np.arange(len(_TRIED)))
        except RowError:  # the rows of the source will tell
            return None
        if windows := self.windows(tried):
            tried = windows.rows.take(pa.array(windows.firsts))
        arrays = self.arrays(tried)
        unpadded = replace(self, is_padded=False)
        return arrays, unpadded, replace(unpadded, is_single=True)

    def lengths(self, inputs: Inputs, rows: Rows) -> npt.NDArray[np.int32]:
        lengths: npt.NDArray[np.int32] = inputs[NUM_TOKENS][rows]
        return lengths

    def num_padded(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        return math.prod(next(iter(shapes.values())))

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        length = self.text.max_tokens
        size = max(1, -(-limits.tokens // length)) if limits.tokens else limits.rows
        slot = Slot((size, length), "int32", varying=(0, 1))
        return dict.fromkeys(self._tensor_names, slot)

    def _width(self, length: int) -> int:
        """Return the padded length of rows, at most what the model takes."""
        if not self.is_padded:
            return max(1, length)
        return min(max(1, -(-length // _ROUND_TO)) * _ROUND_TO, self.text.max_tokens)

    @property
    def _tensor_names(self) -> tuple[str, ...]:
        known = (IDS, MASK, TYPES) if self.text.has_types else (IDS, MASK)
        return tuple(name for name in known if name in self.text.tensor_names)

    def gather(self, inputs: Inputs, rows: Rows, buffers: Inputs) -> Mapping[str, tuple[int, ...]]:
        """Copy rows into the buffers, padded to the longest of these rows."""
        counts = inputs[NUM_TOKENS][rows]
        longest = int(counts.max(initial=0))
        shape = (len(rows), self._width(longest))
        batch = {
            name: buffer[: math.prod(shape)].reshape(shape) for name, buffer in buffers.items()
        }
        for name, pad in ((IDS, self.text.pad_id), (TYPES, 0)):
            if name in batch:
                batch[name][:, longest:] = pad
                batch[name][:, :longest] = inputs[name][rows, :longest]
        if MASK in batch:
            batch[MASK][:] = np.arange(shape[1]) < counts[:, None]
        return dict.fromkeys(buffers, shape)

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        import torch

        from pipeline.preprocessing.normalise import Cast

        return Cast(torch.int64)


def _failure(error: RowError, row: pa.Table, names: list[str]) -> Failure:
    [digest] = row_digests(row, names)
    sha256 = None if digest is None else digest.hex()
    return Failure(error.reason, TOKENIZE, error.message, sha256, num_bytes(row, names))


def _padded(column: pa.ChunkedArray, counts: npt.NDArray[Any], pad: int) -> npt.NDArray[Any]:
    """Return the lists of a column as (N, L), padded with `pad` to the longest."""
    lists = as_array(column)
    values = lists.flatten().to_numpy()
    padded = np.full((len(counts), int(counts.max(initial=0))), pad, values.dtype)
    padded[np.arange(padded.shape[1]) < counts[:, None]] = values
    return padded
