"""Directories of models that hear: what is read of them, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.inputs.clips import tone
from support.models.audio_snapshots import make_listener
from support.models.snapshots import change_json

from pipeline.core.errors import JobError
from pipeline.job.transform import Audio
from pipeline.models.directories.build import build_module
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.resolve import choose_audio
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.audio.audio_input import extracted

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.mark.parametrize(
    "head", [None, pytest.param("AudioModelWithProjection", marks=pytest.mark.slow)]
)
def test_vectors_of_clap_are_those_of_the_library(head: str | None, tmp_path: Path):
    """Also of a clip that resampling makes a sample too long, of which CLAP would take any part."""
    import transformers

    path = make_listener(tmp_path / "m", "clap", head=head)
    facts = read_facts(path)
    assert (facts.input, facts.tasks, facts.embedding_dim) == ("audio", ("embed",), 24)
    assert facts.audio is not None
    assert (facts.audio.max_s, facts.audio.shape) == (2, (1, 201, 16))
    model = getattr(transformers, f"Clap{head or 'Model'}").from_pretrained(path).eval()
    extractor = transformers.ClapFeatureExtractor.from_pretrained(path)
    module = build_module(path, facts, TaskSpec("embed", embedding_dim=24))
    samples = tone(2.0, rate_hz=48_000)
    with torch.inference_mode():
        for clip in (samples[:30_000], samples):
            given = extractor(clip, sampling_rate=48_000, return_tensors="pt")
            features = given["input_features"].float()
            if head is None:
                wanted = model.get_audio_features(features).pooler_output
            else:
                wanted = model(features).audio_embeds
            longer = np.append(clip, np.float32(0.5))
            heard = extracted(facts.audio, longer if len(clip) == len(samples) else clip)
            torch.testing.assert_close(module(torch.from_numpy(heard)[None]), wanted, **CLOSE)


def test_an_extractor_that_is_not_named_is_the_one_of_the_model_type(tmp_path: Path):
    path = make_listener(tmp_path / "m", "hubert")
    change_json(path / "preprocessor_config.json", feature_extractor_type=None)
    facts = read_facts(path)
    assert facts.audio is not None
    assert facts.audio.extractor == "Wav2Vec2FeatureExtractor"
    assert "16000 Hz, clips of any length" in facts.notes[1]


REFUSED = {
    "an unknown extractor": ("hubert", {"feature_extractor_type": "EncodecFeatureExtractor"},
                             "EncodecFeatureExtractor.*expected one of Wav2Vec2"),
    "a number without bounds": ("whisper", {"n_fft": 10**9}, "n_fft is 1000000000"),
    "chance": ("whisper", {"dither": 0.1}, "dither is 0.1, expected 0"),
    "parts by chance": ("clap", {"truncation": "fusion"}, "fusion.*expected .rand_trunc"),
    "another shape": ("ast", {"max_length": 64}, "max_length is 128.* gives 64"),
    "a rate of nothing": ("wav2vec2", {"sampling_rate": 0}, "sampling_rate is 0"),
    "division by nothing": ("ast", {"std": 0.0}, "std is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_extractor_that_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path):
    family, changes, words = REFUSED[case]
    path = make_listener(tmp_path / "m", family)
    change_json(path / "preprocessor_config.json", **changes)
    with pytest.raises(JobError, match=words) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "head"), [("wav2vec2", "ForCTC"), ("whisper", "Model")])
def test_a_model_whose_outputs_are_no_task_is_refused(family: str, head: str, tmp_path: Path):
    path = make_listener(tmp_path / "m", family, head=head)
    with pytest.raises(JobError, match=r"expected an encoder"):
        read_facts(path)


def test_the_job_says_no_more_than_the_model_hears(tmp_path: Path):
    settings = read_facts(make_listener(tmp_path / "m", "whisper")).audio
    assert choose_audio("it", Audio(), settings).max_s == 2
    assert choose_audio("it", Audio(max_s=1.0), settings).max_s == 1
    with pytest.raises(JobError, match="hears 2 s at most"):
        choose_audio("it", Audio(max_s=3.0), settings)
    with pytest.raises(JobError, match="hears 16000"):
        choose_audio("it", Audio(sample_rate_hz=8_000), settings)
    with pytest.raises(JobError, match="says none"):
        choose_audio("it", Audio(), None)
    assert choose_audio("it", Audio(sample_rate_hz=8_000), None).max_s == 30
