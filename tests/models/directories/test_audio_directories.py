"""Test directories of models of sound: equal to their library, or refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.inputs.clips import tone
from support.models.audio_snapshots import FAMILIES, make_listener
from support.models.snapshots import change_json
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.schema import AUDIO
from pipeline.inference.library_check import hold_to_library
from pipeline.job.transform import Audio
from pipeline.models.directories.opening import OF_TRANSFORMERS, read_facts
from pipeline.models.directories.snapshot import local
from pipeline.models.resolving.resolve import choose_audio, resolve_model
from pipeline.models.spec import ModelSpec
from pipeline.preprocessing.audio.audio_input import AudioInput, extracted
from pipeline.process.confined import confined

HEARD = [(family, None) for family in FAMILIES] + [
    *((family, "Model") for family in ("wav2vec2", "hubert", "ast")),
    ("clap", "AudioModelWithProjection"),
]
LONG = ("wav2vec2 of layer norm", "hubert", "wavlm")
"""Further families of what one family shows."""


def resolved(path: Path, **model: Any) -> ModelSpec:
    spec = resolve_model(job_of({"path": str(path), **model}, SOURCES["audio"]))
    return spec.fitted(pa.schema([(AUDIO, pa.large_binary())]))


@pytest.mark.parametrize(
    ("family", "head"), quick_cases(HEARD, lambda family, head: not (family in LONG and head))
)
def test_predictions_are_those_of_the_library(family: str, head: str | None, tmp_path: Path):
    spec = resolved(make_listener(tmp_path / "m", family, head))
    assert re.fullmatch(r"transformers [\d.]+ on [123] clips", hold_to_library(spec))


@pytest.mark.parametrize("task", ["multilabel", "embed"])
def test_tasks_that_the_job_names_are_held_too(task: str, tmp_path: Path):
    head = "Model" if task == "embed" else None
    spec = resolved(make_listener(tmp_path / "m", "ast", head), task=task)
    assert hold_to_library(spec)


def test_other_features_are_refused_with_the_clip(tmp_path: Path):
    """Here: features with another mean, as if the directory's file were not read."""
    spec = resolved(make_listener(tmp_path / "m", "ast"))
    assert isinstance(spec.input, AudioInput)
    assert spec.directory is not None
    options = {**spec.input.audio.options, "mean": 0.0}
    other = replace(spec, input=AudioInput(replace(spec.input.audio, options=options)))
    path = local(spec.directory)
    with pytest.raises(JobError, match="something else for probe clip 1: "):
        confined(
            "pipeline.inference.library_check:compare",
            *(str(path), other),
            reads=[path.parent],
            imports=OF_TRANSFORMERS,
        )


def test_a_sample_too_many_changes_nothing(tmp_path: Path):
    """Resampling may round up; of what is too long CLAP takes any part."""
    settings = read_facts(make_listener(tmp_path / "m", "clap")).audio
    assert settings is not None
    assert (settings.max_s, settings.shape) == (2, (1, 201, 16))
    clip = tone(2.0, rate_hz=48_000)
    longer = np.append(clip, np.float32(0.5))
    np.testing.assert_array_equal(extracted(settings, longer), extracted(settings, clip))


def test_an_extractor_that_is_not_named_is_the_one_of_the_model_type(tmp_path: Path):
    path = make_listener(tmp_path / "m", "hubert")
    change_json(path / "preprocessor_config.json", feature_extractor_type=None)
    facts = read_facts(path)
    assert facts.audio is not None
    assert facts.audio.extractor == "Wav2Vec2FeatureExtractor"
    assert "16000 Hz, clips of any length" in facts.notes[1]


REFUSED = {
    "features of other shapes": ("hubert", {"feature_extractor_type": "EncodecFeatureExtractor"},
                                 "EncodecFeatureExtractor have shapes .*expected the samples"),
    "chance": ("whisper", {"dither": 0.1}, "a clip of 6400 samples.: features .* and .* here"),
    "parts by chance": ("clap", {"truncation": "fusion"}, "runs no ClapModel on these features"),
    "another shape": ("ast", {"max_length": 64}, "runs no ASTFor.* on these features"),
    "other features": ("whisper", {"feature_size": 20}, "runs no WhisperFor.* on these features"),
    "a rate of nothing": ("wav2vec2", {"sampling_rate": 0}, "sampling_rate is 0"),
    "division by nothing": ("ast", {"std": 0.0}, "features .* is -inf in transformers"),
    "features of more time": ("whisper", {"hop_length": 80}, "runs no WhisperFor.* expects"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_extractor_that_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path):
    family, changes, words = REFUSED[case]
    path = make_listener(tmp_path / "m", family)
    change_json(path / "preprocessor_config.json", **changes)
    with pytest.raises(JobError, match=words) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


def test_a_model_whose_outputs_are_no_task_is_refused(tmp_path: Path):
    path = make_listener(tmp_path / "m", "whisper", head="Model")
    with pytest.raises(JobError, match=r"expected an encoder"):
        read_facts(path)


def test_a_job_asks_for_no_more_than_the_model_takes(tmp_path: Path):
    settings = read_facts(make_listener(tmp_path / "m", "whisper")).audio
    assert choose_audio("it", Audio(), settings).max_s == 2
    assert choose_audio("it", Audio(max_s=1.0), settings).max_s == 1
    with pytest.raises(JobError, match="takes 2 s at most"):
        choose_audio("it", Audio(max_s=3.0), settings)
    with pytest.raises(JobError, match="takes 16000"):
        choose_audio("it", Audio(sample_rate_hz=8_000), settings)
    with pytest.raises(JobError, match="names no sample rate"):
        choose_audio("it", Audio(), None)
    assert choose_audio("it", Audio(sample_rate_hz=8_000), None).max_s == 30
