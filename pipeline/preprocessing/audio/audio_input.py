"""Clips of sound: encoded bytes become float32 samples at the model's rate, or features of them.

Samples cross the object store as float32 of each clip's own length: a model with 16-bit samples
would hear another clip where one is quiet, for most models scale each to one loudness, and scores
would not be those of the library. Nothing is padded: a batch has clips of one length, so that no
prediction depends on its neighbours; many models hear padding.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.core.arrays import alike_in_shape, as_array, features_from_arrow
from pipeline.core.failures import Failure, Reason, RowError, failure_columns, failures_of
from pipeline.core.figures.counters import Counters, StageCounters, add
from pipeline.core.schema import AUDIO, DURATION_S
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.audio.audio_settings import AudioSettings, require_decoders
from pipeline.preprocessing.input_facts import Columns, Cost, SliceRows
from pipeline.preprocessing.model_input import (
    Arrays,
    BatchLimits,
    FixedShape,
    InputSettings,
    Limits,
    Rows,
    Slot,
)
from pipeline.process.liveness import still_alive

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job
    from pipeline.preprocessing.audio.decode import Clip, Samples

TENSOR = "audio"
_DECODE, _TRANSFORM = "decode", "transform"
_USUAL_ROWS = {False: 4, True: 16}
"""Whether it is on a GPU -> clips of a batch. A clip of 30 s takes 200 MB in the first layer of a
usual model."""


@dataclass(frozen=True)
class AudioInput(FixedShape):
    """One tensor `audio`, float32: (B, T) samples, T alike in a batch, or features (B, ...)."""

    audio: AudioSettings
    name: ClassVar[str] = "audio"
    stage_names: ClassVar[tuple[str, ...]] = (_DECODE, _TRANSFORM)
    takes: ClassVar[str] = "audio"
    cost: ClassVar[Cost] = "image"
    how_to_name: ClassVar[str] = (
        "takes clips of sound: name them with source.audio_column, or uri_column and input: audio, "
        "or read files of format audio"
    )

    @classmethod
    def of(cls, settings: InputSettings) -> Self:
        if settings.audio is None:
            raise ValueError("clips of sound need a sample rate")
        require_decoders()
        return cls(settings.audio)

    @classmethod
    def slice_rows(cls, job: Job) -> SliceRows:
        """Return few: samples are ten times the bytes of an MP3, and a clip takes long to hear."""
        return SliceRows(near=64, small_near=128, uncounted=64, few=16, weight=3.0)

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return the columns of encoded clips, of clips in base64, and of URIs of clips."""
        from pipeline.preprocessing.audio.decode import is_clip
        from pipeline.preprocessing.encoded_columns import encoded_columns
        from pipeline.sources.image_files import AudioFiles

        hears = {"input": ("audio", "the URIs are of clips")}
        return encoded_columns(rows, "audio", is_clip, AudioFiles.suffixes, hears)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"waveform": SEMANTICS["waveform"]}

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        return BatchLimits(_USUAL_ROWS[is_on_gpu])

    def settings(self) -> dict[str, Any]:
        return self.audio.to_dict()

    def fitted(self, fields: pa.Schema) -> Self:
        return self

    def fields(self) -> list[pa.Field]:
        size, number = math.prod(self.audio.shape), pa.float32()
        kind = pa.list_(number, size) if self.audio.shape else pa.large_list(number)
        return [pa.field(AUDIO, kind)]

    def published_fields(self) -> list[pa.Field]:
        """Return how long the clip is, before its rate is changed."""
        return [pa.field(DURATION_S, pa.float32())]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        failures = failures_of(rows)
        todo = [row for row, failure in enumerate(failures) if failure is None]
        encoded, started = rows.column(AUDIO), perf_counter()

        def make(row: int) -> _Made:
            still_alive()
            return self._made(encoded[row].as_py(), limits.max_bytes)

        made: dict[int, _Made] = {}
        with ThreadPoolExecutor(num_threads) as pool:
            for row, each in zip(todo, pool.map(make, todo), strict=True):
                still_alive()
                made[row], failures[row] = each, each.failure
        _count([*made.values()], perf_counter() - started, counters)
        durations = [made[row].duration_s if row in made else None for row in range(len(failures))]
        found = [made[row].features if row in made else None for row in range(len(failures))]
        columns = {name: rows.column(name) for name in rows.column_names}
        columns[AUDIO] = self._to_arrow(found)
        columns[DURATION_S] = pa.array(durations, pa.float32())
        return pa.table(columns | failure_columns(failures))

    def _made(self, data: bytes, max_bytes: int) -> _Made:
        """Decode one clip, and make its features."""
        from pipeline.preprocessing.audio.decode import decode_clip, resampled
        from pipeline.preprocessing.audio.extractors import extracted

        made = _Made(len(data), perf_counter())
        try:
            clip = decode_clip(data, max_bytes, self.audio.max_s)
            made.decoded(clip)
            samples = resampled(clip, self.audio.sample_rate_hz)
            if not len(samples):
                told = f"the clip has no sample at {self.audio.sample_rate_hz} Hz"
                raise RowError(Reason.EMPTY, told)
            made.features = extracted(self.audio, samples)
        except RowError as error:
            digest = hashlib.sha256(data).hexdigest()
            made.failure = Failure(error.reason, made.stage, error.message, digest, len(data))
        made.ended_s = perf_counter()
        return made

    def _to_arrow(self, found: Sequence[Samples | None]) -> pa.Array:
        """Copy features into one column; those of failed rows are null, or zeros of the shape."""
        number = pa.float32()
        if self.audio.shape:
            size = math.prod(self.audio.shape)
            values = np.zeros((len(found), size), np.float32)
            for place, features in zip(values, found, strict=True):
                if features is not None:
                    place[:] = features.reshape(-1)
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        ends = np.cumsum([0, *(0 if each is None else len(each) for each in found)], dtype=np.int64)
        there = [each for each in found if each is not None]
        flat = np.concatenate(there) if there else np.empty(0, np.float32)
        has_none = pa.array([each is None for each in found], pa.bool_())
        return pa.LargeListArray.from_arrays(
            pa.array(ends), pa.array(flat, number), pa.large_list(number), mask=has_none
        )

    def arrays(self, rows: pa.Table) -> Arrays:
        """View features as float32 (N, ...); samples as (N,) of arrays, float32 (T,), read-only."""
        if self.audio.shape:
            found = features_from_arrow(rows.column(AUDIO))
            return {TENSOR: found.reshape(len(found), *self.audio.shape)}
        column = as_array(rows.column(AUDIO))
        ends, flat = column.offsets.to_numpy(), column.values.to_numpy()
        views = np.empty(len(column), object)
        for row in range(len(column)):
            views[row] = flat[ends[row] : ends[row + 1]]
        return {TENSOR: views}

    def batches(self, inputs: Arrays, rows: Rows, limits: BatchLimits) -> list[Rows]:
        """Return the rows in order; clips of their own length by length, the longest first."""
        if self.audio.shape:
            return super().batches(inputs, rows, limits)
        return alike_in_shape(inputs[TENSOR], rows, limits.rows, limits.pixels)

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        if self.audio.shape:
            return {TENSOR: Slot((limits.rows, *self.audio.shape), "float32")}
        return {TENSOR: Slot((limits.rows, self.audio.sample_rate_hz), "float32", varying=(0, 1))}

    def gather(self, inputs: Arrays, rows: Rows, buffers: Arrays) -> Mapping[str, tuple[int, ...]]:
        """Copy the rows into the buffer; they have one length."""
        if self.audio.shape:
            return super().gather(inputs, rows, buffers)
        clips: npt.NDArray[Any] = inputs[TENSOR][rows]
        shape = (len(rows), len(clips[0]))
        batch = buffers[TENSOR][: math.prod(shape)].reshape(shape)
        for place, clip in zip(batch, clips, strict=True):
            place[:] = clip
        return {TENSOR: shape}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Cast

        return Cast(dtype)


@dataclass
class _Made:
    """What becomes of one clip, and when."""

    num_bytes: int
    started_s: float
    decoded_s: float | None = None
    ended_s: float = 0.0
    num_decoded_bytes: int = 0
    duration_s: float | None = None
    features: Samples | None = None
    failure: Failure | None = None

    @property
    def stage(self) -> str:
        """Return the stage that it is in."""
        return _DECODE if self.decoded_s is None else _TRANSFORM

    def decoded(self, clip: Clip) -> None:
        """Note that it is decoded."""
        self.decoded_s, self.duration_s = perf_counter(), clip.duration_s
        self.num_decoded_bytes = clip.samples.nbytes

    def counted(self) -> dict[str, StageCounters]:
        """Return what each stage did."""
        decoded_s, was_decoded = self.decoded_s or self.ended_s, self.decoded_s is not None
        is_good, size = self.failure is None, 0 if self.features is None else self.features.nbytes
        given, raw = self.num_bytes, self.num_decoded_bytes
        decode = StageCounters(
            1, int(was_decoded), int(not was_decoded), given, raw, decoded_s - self.started_s
        )
        if not was_decoded:
            return {_DECODE: decode}
        transform = StageCounters(
            1, int(is_good), int(not is_good), raw, size, self.ended_s - decoded_s
        )
        return {_DECODE: decode, _TRANSFORM: transform}


def _count(made: Sequence[_Made], wall_s: float, counters: Counters) -> None:
    """Add what was done; busy seconds are those of the slot, however many threads it has."""
    worked_s = sum(each.ended_s - each.started_s for each in made)
    scale = min(1.0, wall_s / worked_s) if worked_s else 1.0
    for stage in (_DECODE, _TRANSFORM):
        add(counters, stage, StageCounters())
    for each in made:
        for stage, did in each.counted().items():
            add(counters, stage, replace(did, busy_s=did.busy_s * scale))
