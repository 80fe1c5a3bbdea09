"""Directories of models that hear give what the library's own pipeline gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.inputs.clips import RATE_HZ, encoded, tone
from support.models.audio_snapshots import FAMILIES, LABELS, make_listener
from support.models.snapshots import change_json

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO, ERROR
from pipeline.job.audio import Audio
from pipeline.models.directories.build import build_module
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import read_facts
from pipeline.models.resolving.audio_choice import choose_audio
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.audio.audio_input import TENSOR, AudioInput
from pipeline.preprocessing.audio.extractors import extracted
from pipeline.preprocessing.model_input import BatchLimits, InputSettings, Limits

CLIPS = (tone(0.7, 300), tone(0.4, 700), tone(0.7, 1200), np.zeros(4_000, np.float32))
CLOSE = {"atol": 1e-5, "rtol": 1e-4}
QUICK = ("wav2vec2", "ast", "whisper")
CLASSIFY = [
    pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
    for name in FAMILIES
    if name != "clap"
]


def heard(facts: DirectoryFacts) -> list[tuple[list[int], torch.Tensor]]:
    """The batches that a run would make of the clips."""
    seen = AudioInput.of(InputSettings(audio=choose_audio("it", Audio(), facts.audio)))
    ids = [str(row) for row in range(len(CLIPS))]
    data = [encoded(each, subtype="FLOAT") for each in CLIPS]
    columns = {"row_id": ids, "uri": ids, AUDIO: pa.array(data, pa.large_binary())}
    rows = pa.table({**columns, **failure_columns([None] * len(CLIPS))})
    prepared = seen.prepare(rows, {}, Limits(10**6, 1))
    assert prepared.column(ERROR).null_count == len(CLIPS)
    inputs, limits, found = seen.arrays(prepared), BatchLimits(4), []
    for batch in seen.batches(inputs, np.arange(len(CLIPS)), limits):
        buffer = np.zeros(4 * 2 * RATE_HZ, np.float32)
        shape = seen.gather(inputs, batch, {TENSOR: buffer})[TENSOR]
        tensor = torch.from_numpy(buffer[: np.prod(shape)].reshape(shape))
        found.append((batch.tolist(), tensor))
    return found


@pytest.mark.parametrize("family", CLASSIFY)
def test_scores_are_those_of_the_librarys_pipeline(family: str, tmp_path: Path):
    from transformers import pipeline

    path = make_listener(tmp_path / "m", family)
    facts = read_facts(path)
    assert (facts.input, facts.tasks[0], facts.labels) == ("audio", "classify", LABELS)
    theirs: Any = pipeline("audio-classification", model=str(path), feature_extractor=str(path))
    module = build_module(path, facts, TaskSpec("classify", labels=LABELS))
    with torch.inference_mode():
        for rows, batch in heard(facts):
            scores = module(batch).softmax(-1)
            for row, found in zip(rows, scores, strict=True):
                told = theirs(CLIPS[row].copy(), top_k=None)
                wanted = {each["label"]: each["score"] for each in told}
                torch.testing.assert_close(
                    found, torch.tensor([wanted[name] for name in LABELS]), **CLOSE
                )


@pytest.mark.parametrize(("family", "pooling"), [("wav2vec2", "mean"), ("ast", "pooler")])
def test_vectors_are_those_of_the_librarys_model(family: str, pooling: str, tmp_path: Path):
    import transformers

    path = make_listener(tmp_path / "m", family, head="Model")
    facts = read_facts(path)
    assert (facts.input, facts.tasks, facts.embedding_dim) == ("audio", ("embed",), 32)
    assert facts.pooling is not None
    assert facts.pooling.modes == (pooling,)
    model = transformers.AutoModel.from_pretrained(path).eval()
    module = build_module(path, facts, TaskSpec("embed", embedding_dim=32))
    with torch.inference_mode():
        for _, batch in heard(facts):
            found = model(batch)
            wanted = found.pooler_output if pooling == "pooler" else found[0].mean(1)
            torch.testing.assert_close(module(batch), wanted, **CLOSE)


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
    assert "16000 Hz, clips of any length" in facts.said[1]


REFUSED = {
    "an unknown extractor": ("hubert", {"feature_extractor_type": "EncodecFeatureExtractor"},
                             "EncodecFeatureExtractor.*expected one of Wav2Vec2"),
    "a number without bounds": ("whisper", {"n_fft": 10**9}, "n_fft is 1000000000"),
    "chance": ("whisper", {"dither": 0.1}, "dither is 0.1, expected 0"),
    "parts by chance": ("clap", {"truncation": "fusion"}, "fusion.*expected .rand_trunc"),
    "another shape": ("ast", {"max_length": 64}, "max_length is 128.* gives 64"),
    "a rate of nothing": ("wav2vec2", {"sampling_rate": 0}, "sampling_rate is 0"),
    "division by nothing": ("ast", {"std": 0.0}, "std is 0.0"),
    "code": ("ast", {"auto_map": {"AutoFeatureExtractor": "a.B"}}, "auto_map"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_extractor_that_cannot_be_is_refused_in_one_line(case: str, tmp_path: Path):
    family, changes, told = REFUSED[case]
    path = make_listener(tmp_path / "m", family)
    change_json(path / "preprocessor_config.json", **changes)
    with pytest.raises(JobError, match=told) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("family", "head"), [("wav2vec2", "ForCTC"), ("whisper", "Model")])
def test_a_model_whose_outputs_are_no_task_is_refused(family: str, head: str, tmp_path: Path):
    path = make_listener(tmp_path / "m", family, head=head)
    with pytest.raises(JobError, match=r"expected an encoder"):
        read_facts(path)


def test_the_job_says_no_more_than_the_model_hears(tmp_path: Path):
    own = read_facts(make_listener(tmp_path / "m", "whisper")).audio
    assert choose_audio("it", Audio(), own).max_s == 2
    assert choose_audio("it", Audio(max_s=1.0), own).max_s == 1
    with pytest.raises(JobError, match="hears 2 s at most"):
        choose_audio("it", Audio(max_s=3.0), own)
    with pytest.raises(JobError, match="hears 16000"):
        choose_audio("it", Audio(sample_rate_hz=8_000), own)
    with pytest.raises(JobError, match="says none"):
        choose_audio("it", Audio(), None)
    assert choose_audio("it", Audio(sample_rate_hz=8_000), None).max_s == 30
