"""Input `audio`: encoded clips become float32 samples at the model's rate, or features of them.

Samples stay float32 in transit: most models scale a clip to one loudness, so 16-bit samples of a
quiet clip would give other scores than the library's. Nothing is padded: a batch has clips of one
length, as padding changes the predictions of many models.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pyarrow as pa

from pipeline.core.arrays import as_array, features_from_arrow
from pipeline.core.failures import Reason, RowError, failure_columns
from pipeline.core.figures import PREPARED, Counters
from pipeline.core.schema import AUDIO, DURATION_S
from pipeline.core.semantics import SEMANTICS
from pipeline.preprocessing.audio.audio_settings import (
    NORMALISED,
    AudioSettings,
    require_decoders,
)
from pipeline.preprocessing.encoded_rows import encoded_columns, prepare_rows
from pipeline.preprocessing.model_input import (
    BatchLimits,
    Columns,
    Cost,
    Input,
    Inputs,
    InputSettings,
    Limits,
    SliceRows,
    Slot,
)

if TYPE_CHECKING:
    import torch

    from pipeline.job.job import Job
    from pipeline.preprocessing.audio.decode_clip import Clip, Samples

TENSOR = "audio"
_EPSILON = 1e-7
_WHOLE = {"truncation": False, "padding": "longest"}
"""Options of an extractor for the features of a whole clip, neither cut nor padded."""
_USUAL_ROWS = {False: 4, True: 16}
"""Whether the model is on a GPU -> clips of a batch. A clip of 30 s takes 200 MB in the first layer
of a typical model."""


@dataclass(frozen=True)
class AudioInput(Input):
    """One tensor `audio`, float32: (B, T) samples of clips of one length, or features (B, ...)."""

    audio: AudioSettings
    name: ClassVar[str] = "audio"
    stage_names: ClassVar[tuple[str, ...]] = PREPARED
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
        """Return few rows: samples have ten times the bytes of an MP3, and a clip takes long."""
        return SliceRows(near=64, small_near=128, uncounted=64, few=16, weight=3.0)

    @classmethod
    def columns_in(cls, rows: pa.Table, ids: Collection[str]) -> Sequence[Columns]:
        """Return the columns of encoded clips, of clips in base64, and of URIs of clips."""
        hears = {"input": ("audio", "the URIs are of clips")}
        return encoded_columns(rows, "audio", hears)

    @property
    def semantics(self) -> Mapping[str, int]:
        return {"waveform": SEMANTICS["waveform"]}

    def usual_batch(self, *, is_on_gpu: bool) -> BatchLimits:
        return BatchLimits(_USUAL_ROWS[is_on_gpu])

    def settings(self) -> dict[str, Any]:
        return self.audio.to_dict()

    def fields(self) -> list[pa.Field]:
        size, number = math.prod(self.audio.shape), pa.float32()
        dtype = pa.list_(number, size) if self.audio.has_one_shape else pa.large_list(number)
        return [pa.field(AUDIO, dtype)]

    def published_fields(self) -> list[pa.Field]:
        """Return the duration of the clip before its rate is changed."""
        return [pa.field(DURATION_S, pa.float32())]

    def prepare(
        self, rows: pa.Table, counters: Counters, limits: Limits, num_threads: int = 1
    ) -> pa.Table:
        from pipeline.preprocessing.audio.decode_clip import decode_clip, resampled

        durations: list[float | None] = [None] * rows.num_rows
        made: list[Samples | None] = [None] * rows.num_rows

        def decode(row: int, data: bytes) -> tuple[Clip, int]:
            clip = decode_clip(data, limits.max_bytes, self.audio.max_s)
            durations[row] = clip.duration_s
            return clip, clip.samples.nbytes

        def transform(row: int, clip: Clip) -> tuple[None, int]:
            samples = resampled(clip, self.audio.sample_rate_hz)
            if not len(samples):
                message = f"the clip has no sample at {self.audio.sample_rate_hz} Hz"
                raise RowError(Reason.EMPTY, message)
            made[row] = features = extracted(self.audio, samples)
            return None, features.nbytes

        failures = prepare_rows(rows, AUDIO, decode, [transform] * num_threads, counters)
        columns = {name: rows.column(name) for name in rows.column_names}
        columns[AUDIO] = self._to_arrow(made)
        columns[DURATION_S] = pa.array(durations, pa.float32())
        return pa.table(columns | failure_columns(failures))

    def _to_arrow(self, clips: Sequence[Samples | None]) -> pa.Array:
        """Copy features into one column; failed rows are null, or zeros if all have one shape."""
        number = pa.float32()
        if self.audio.has_one_shape:
            size = math.prod(self.audio.shape)
            values = np.zeros((len(clips), size), np.float32)
            for place, clip in zip(values, clips, strict=True):
                if clip is not None:
                    place[:] = clip.reshape(-1)
            return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        ends = np.cumsum([0, *(0 if clip is None else clip.size for clip in clips)], dtype=np.int64)
        there = [clip.reshape(-1) for clip in clips if clip is not None]
        flat = np.concatenate(there) if there else np.empty(0, np.float32)
        has_none = pa.array([clip is None for clip in clips], pa.bool_())
        return pa.LargeListArray.from_arrays(
            pa.array(ends), pa.array(flat, number), pa.large_list(number), mask=has_none
        )

    def arrays(self, rows: pa.Table) -> Inputs:
        """View features as float32 (N, ...), or as (N,) arrays if clips differ; read-only.

        An array is float32, (T,) samples or (..., T) features.
        """
        if self.audio.has_one_shape:
            features = features_from_arrow(rows.column(AUDIO))
            return {TENSOR: features.reshape(len(features), *self.audio.shape)}
        column = as_array(rows.column(AUDIO))
        ends, flat = column.offsets.to_numpy(), column.values.to_numpy()
        views = np.empty(len(column), object)
        for row in range(len(column)):
            views[row] = flat[ends[row] : ends[row + 1]].reshape(*self.audio.shape[:-1], -1)
        return {TENSOR: views}

    def slots(self, limits: BatchLimits) -> Mapping[str, Slot]:
        shape = (limits.rows, *(self.audio.shape or (self.audio.sample_rate_hz,)))
        varying = () if self.audio.has_one_shape else (0, len(shape) - 1)
        return {TENSOR: Slot(shape, "float32", varying)}

    def normaliser(self, dtype: torch.dtype) -> torch.nn.Module:
        from pipeline.preprocessing.normalise import Cast

        return Cast(dtype)


def extracted(settings: AudioSettings, samples: Samples) -> Samples:
    """Return the features of a clip.

    Args:
        settings: The model's settings.
        samples: float32 (T,) at the model's rate, T > 0.

    Returns:
        float32 of `settings.shape`, with a longer last axis beyond the window; (T,) if that is ().
    """
    if not settings.extractor:
        return samples
    if settings.extractor == NORMALISED:
        return _normalised(samples) if settings.options["do_normalize"] else samples
    extract = _extractor(settings.extractor, json.dumps(settings.options, sort_keys=True))
    # Resampling may round up, and CLAP takes a random part of a longer clip.
    heard = samples[: settings.max_samples]
    is_long = settings.window_s and len(heard) > settings.window_s * settings.sample_rate_hz
    features: Samples = extract(heard, **(_WHOLE if is_long else {})).astype(np.float32, copy=False)
    return features


def _normalised(samples: Samples) -> Samples:
    """Normalise a clip as `Wav2Vec2FeatureExtractor`, whose import takes seconds."""
    normalised: Samples = (samples - samples.mean()) / np.sqrt(samples.var() + _EPSILON)
    return normalised


@functools.cache
def _extractor(name: str, options: str) -> Callable[..., Any]:
    """Return a feature extractor of the installed transformers; its filters are computed once."""
    import transformers

    numbers, cls = json.loads(options), getattr(transformers, name)
    assert issubclass(cls, transformers.FeatureExtractionMixin), name
    made = cls(**numbers)
    rate = numbers["sampling_rate"]

    def extract(samples: Samples, **options: Any) -> Any:
        features = made(samples, sampling_rate=rate, return_tensors="np", **options)
        return features[made.model_input_names[0]][0]

    return extract
