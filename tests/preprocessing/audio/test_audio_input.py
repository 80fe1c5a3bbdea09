"""Test that clips keep their own lengths, and that a batch has clips of one length."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.inputs.clips import RATE_HZ, encoded, tone

from pipeline.core.failures import failure_columns
from pipeline.core.figures import Counters
from pipeline.core.schema import AUDIO, DURATION_S, ERROR
from pipeline.inference.devices.load_runner import _small
from pipeline.preprocessing.audio.audio_input import TENSOR, AudioInput, extracted
from pipeline.preprocessing.audio.audio_settings import NORMALISED, AudioSettings
from pipeline.preprocessing.model_input import BatchLimits, InputSettings, Limits

SETTINGS = AudioSettings(RATE_HZ, 1.0)
SEEN = AudioInput.of(InputSettings(audio=SETTINGS))
SECONDS = (0.25, 0.5, 0.25, 2.0, 0.25)
LONG = 3


def rows_of(seconds: tuple[float, ...] = SECONDS) -> pa.Table:
    ids = [str(row) for row in range(len(seconds))]
    data = pa.array(
        [encoded(tone(duration_s), subtype="FLOAT") for duration_s in seconds], pa.large_binary()
    )
    columns = {"row_id": ids, "uri": ids, AUDIO: data}
    return pa.table({**columns, **failure_columns([None] * len(seconds))})


@pytest.mark.parametrize("num_threads", [1, 3])
def test_clips_keep_their_lengths_and_are_counted(num_threads: int):
    counters = Counters()
    prepared = SEEN.prepare(rows_of(), counters, Limits(10**6, 1), num_threads)
    assert prepared.column(DURATION_S).to_pylist() == [
        None if row == LONG else duration_s for row, duration_s in enumerate(SECONDS)
    ]
    assert prepared.column(ERROR).to_pylist() == [None, None, None, "too_large", None]
    for row, samples in enumerate(SEEN.arrays(prepared)[TENSOR]):
        assert np.array_equal(samples, [] if row == LONG else tone(SECONDS[row]))
    counts = [(stage["rows_in"], stage["rows_out"]) for stage in counters.values()]
    assert counts == [(5, 4), (4, 4)]


def test_a_slice_without_rows_is_prepared():
    prepared = SEEN.prepare(rows_of(()), {}, Limits(10**6, 1))
    assert prepared.num_rows == 0
    assert len(SEEN.arrays(prepared)[TENSOR]) == 0


def test_a_slice_of_a_table_is_viewed_where_it_begins():
    prepared = SEEN.prepare(rows_of(), {}, Limits(10**6, 1)).slice(1, 2)
    assert [len(clip) for clip in SEEN.arrays(prepared)[TENSOR]] == [RATE_HZ // 2, RATE_HZ // 4]


def test_a_batch_has_clips_of_one_length_and_bounded_samples():
    inputs = SEEN.arrays(SEEN.prepare(rows_of(), {}, Limits(10**6, 1)))
    rows = np.array([0, 1, 2, 4])
    alike = [batch.tolist() for batch in SEEN.batches(inputs, rows, BatchLimits(8))]
    assert alike == [[1], [0, 2, 4]]
    limits = BatchLimits(8, pixels=RATE_HZ // 2)
    assert [batch.tolist() for batch in SEEN.batches(inputs, rows, limits)] == [[1], [0, 2], [4]]


def test_exporters_trace_a_clip_that_a_model_can_hear():
    assert _small(SEEN.slots(BatchLimits(4))[TENSOR])[1] == RATE_HZ


def test_silence_has_finite_features():
    settings = replace(SETTINGS, extractor=NORMALISED, options={"do_normalize": True})
    assert not extracted(settings, np.zeros(800, np.float32)).any()
    loud = extracted(settings, tone())
    assert torch.tensor(loud).std().item() == pytest.approx(1, abs=1e-2)
