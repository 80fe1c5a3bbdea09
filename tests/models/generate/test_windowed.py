"""Test that Whisper writes long clips, and timestamps, as transformers does by itself."""

from __future__ import annotations

import uuid
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.faults.fake_device import FakeGpu, installed
from support.inputs.clips import encoded, tone
from support.models.feature_writers import feature_writing, make_feature_writer, prepared_features
from support.models.language_models import NEW_TOKENS
from support.models.timed_writers import library_pipeline, library_segments, make_timed_writer
from support.runs.jobs import job_over

from pipeline.core.errors import JobError
from pipeline.core.figures import Counters, SliceFigures
from pipeline.inference.generate.generate_engine import GenerateEngine
from pipeline.inference.library_check import hold_to_library
from pipeline.job.model import Generate, Model
from pipeline.job.transform import Audio
from pipeline.models.agreement import AgreementLimits
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig

WINDOW_S = 2
CLIPS = tuple(
    tone(length_s, hz)
    for length_s, hz in ((0.1, 300), (1.9, 90), (2, 700), (2.1, 300), (5, 700), (5, 90), (13.2, 90))
)
LIMITS = AgreementLimits(max_score_diff=0.01, min_cosine=0.999, max_relative_error=0.01)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cache(lambda window_s: make_timed_writer(tmp_path_factory.mktemp("m") / "m", window_s))


def written(spec: ModelSpec, clips: Any, counters: Counters | None = None) -> list[dict[str, Any]]:
    rows = prepared_features(spec, [encoded(clip, subtype="FLOAT") for clip in clips])
    config = PredictorConfig(spec, 4, 0.0, 1, pa.schema([]), LIMITS, uuid.uuid4().hex)
    table = GenerateEngine(config).predict(rows, {} if counters is None else counters)
    return table.to_pylist()


def require_equal(path: Path, clips: Any, *, timestamps: bool) -> None:
    """Compare what a job writes with the library's pipeline, and segments with its `generate`."""
    counters, most = Counters(), {"max_new_tokens": NEW_TOKENS, "num_beams": 1}
    actual = written(feature_writing(path, {"timestamps": timestamps}), clips, counters)
    transcribe = library_pipeline(path)
    for clip, row in zip(clips, actual, strict=True):
        is_long = len(clip) > transcribe.feature_extractor.n_samples
        asked = {"return_timestamps": True} if timestamps or is_long else {}
        assert row["error"] is None
        assert row["text"] == transcribe(np.array(clip), generate_kwargs=most, **asked)["text"]
        if timestamps:
            assert row["segments"] == library_segments(path, clip, NEW_TOKENS)
            assert "".join(segment["text"] for segment in row["segments"]) == row["text"]
        assert timestamps == ("segments" in row)
    assert len({row["text"] for row in actual}) == len(clips)  # the model looks at its input
    checked = SliceFigures.from_json(counters).reference_check
    assert checked is not None
    assert checked.num_rows == checked.num_agreed == len(clips)


@pytest.mark.parametrize("timestamps", [False, True])
def test_texts_and_segments_are_those_of_the_library(folder_of: Any, timestamps: bool):
    require_equal(folder_of(WINDOW_S), CLIPS, timestamps=timestamps)


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
def test_windows_of_half_a_minute_are_those_of_the_library(folder_of: Any, timestamps: bool):
    clips = [tone(length_s, 300) for length_s in (0.1, 29.9, 30, 30.1, 75, 200)]
    require_equal(folder_of(30), clips[:: 2 if timestamps else 1], timestamps=timestamps)


def test_what_neighbours_are_changes_no_bit_of_a_long_clip(folder_of: Any):
    spec = feature_writing(folder_of(WINDOW_S), {"timestamps": True})
    together = written(spec, CLIPS[3:6])
    alone = [row for clip in CLIPS[3:6] for row in written(spec, [clip])]
    for row in (*together, *alone):
        del row["row_id"], row["uri"]
    assert together == alone


def test_a_long_clip_counts_all_that_is_written_to_it(folder_of: Any):
    counters = Counters()
    [row] = written(feature_writing(folder_of(WINDOW_S)), CLIPS[-1:], counters)
    figures = SliceFigures.from_json(counters)
    assert row["num_output_tokens"] == figures.generated.num_tokens == figures.steps.num_steps
    assert row["num_output_tokens"] > NEW_TOKENS  # of several windows
    assert row["num_input_tokens"] == 13.2 * 50
    assert row["finish_reason"] == "length"
    assert row["mean_logprob"] < 0


def test_quarantine_takes_clips_with_a_window_that_has_no_end(folder_of: Any):
    spec = feature_writing(folder_of(WINDOW_S), {"invalid": "quarantine", "max_new_tokens": 4})
    [row] = written(spec, CLIPS[4:5])
    assert (row["error"], row["text"]) == ("output_truncated", None)


def test_half_precision_holds_the_check_by_the_first_window(folder_of: Any):
    spec = replace(feature_writing(folder_of(WINDOW_S), {"timestamps": True}), precision="bf16")
    counters = Counters()
    with installed(FakeGpu()):
        actual = written(spec, CLIPS[3:], counters)
    assert [row["error"] for row in actual] == [None] * len(actual)
    checked = SliceFigures.from_json(counters).reference_check
    assert checked is not None
    assert (checked.num_rows, checked.num_agreed) == (len(actual), len(actual))


def resolved(path: Path, max_s: float | None = None, **generate: Any) -> ModelSpec:
    section = Model(path=str(path), task="generate", generate=Generate(**generate))
    return resolve_model(job_over("audio", section, audio=Audio(max_s=max_s) if max_s else Audio()))


def test_a_longer_clip_than_the_job_allows_is_refused_alone(folder_of: Any):
    spec = resolved(folder_of(WINDOW_S), max_s=5)
    row, refused = written(spec, [CLIPS[4], CLIPS[6]])
    assert row["error"] is None
    assert (refused["error"], refused["text"]) == ("too_large", None)
    assert "allowed are 5 (audio.max_s)" in refused["message"]


def test_the_job_decides_how_long_clips_are(folder_of: Any):
    path = folder_of(WINDOW_S)
    for max_s, expected in ((None, (600, WINDOW_S)), (3600, (3600, WINDOW_S)), (2, (2, None))):
        audio = resolved(path, max_s).input.audio
        assert (audio.max_s, audio.window_s) == expected
    assert (
        "longer clips, and with timestamps all, one by one in windows" in resolved(path).notes[-1]
    )
    assert resolved(path).task.generation.max_new_tokens == 64 - 3
    # Where no clip is longer than a window, fingerprints are those from before there were windows.
    short = resolved(path, 2)
    assert "window_s" not in str(short.to_dict())
    assert "timestamps" not in str(short.to_dict()["task"])
    assert hold_to_library(resolved(path, timestamps=True)).startswith("transformers ")


def test_what_windows_cannot_have_is_refused_in_a_line(folder_of: Any, tmp_path: Path):
    path = folder_of(WINDOW_S)
    assert resolved(path, stop=("the",)).input.audio.max_s == WINDOW_S
    with pytest.raises(JobError, match=r"max_s = 5: .* takes 2 s at most with generate\.stop or"):
        resolved(path, 5, stop=("the",))
    with pytest.raises(ValueError, match=r"timestamps: takes neither generate\.stop nor"):
        resolved(path, stop=("the",), timestamps=True)
    moonshine = make_feature_writer(tmp_path / "m", "moonshine")
    with pytest.raises(JobError, match=r"generate\.timestamps: .* writes no times; leave it out"):
        resolved(moonshine, timestamps=True)
    assert resolved(moonshine, 75).input.audio.max_s == 75
    # Without one token that ends a text, the library has no long form.
    ended_twice = make_timed_writer(tmp_path / "twice", eos_token_id=[352, 3])
    with pytest.raises(JobError, match=r"audio\.max_s = 5: .* takes 2 s at most$"):
        resolved(ended_twice, 5)
