"""Test directories that give a token for each frame of a clip: texts are those of the library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.inputs.clips import encoded, tone
from support.models.audio_snapshots import FAMILIES, TOKENS, make_listener, make_transcriber
from support.models.snapshots import change_json, write_json
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases

from pipeline.core.errors import JobError
from pipeline.core.failures import failure_columns
from pipeline.core.schema import AUDIO
from pipeline.inference.engines import open_engine
from pipeline.inference.library_check import hold_to_library
from pipeline.models.directories.opening import read_facts
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.generate.build import clean
from pipeline.models.generate.spec import Transcription
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import Limits

SETTINGS: dict[str, dict[str, Any]] = {
    "wav2vec2": {"clean_up_tokenization_spaces": True},
    "wav2vec2 of layer norm": {"do_lower_case": True, "replace_word_delimiter_char": "_"},
    "hubert": {"word_delimiter_token": "a", "pad_token": "h"},
    "wavlm": {"bos_token": None, "eos_token": None, "word_delimiter_token": None},
}
"""Family -> settings of its tokenizer."""
FAMILY = pytest.mark.parametrize("family", [*SETTINGS])


def resolved(path: Path, **model: Any) -> ModelSpec:
    spec = resolve_model(job_of({"path": str(path), **model}, SOURCES["audio"]))
    return spec.fitted(pa.schema([(AUDIO, pa.large_binary())]))


def noise(seed: int, length_s: float) -> Any:
    drawn = np.random.default_rng(seed)
    swell = np.sin(np.arange(round(16_000 * length_s)) / (300 + 90 * seed))
    return (drawn.normal(0, 0.2, len(swell)) * swell).astype(np.float32)


@pytest.mark.parametrize("family", quick_cases([(f,) for f in SETTINGS], lambda f: f == "wavlm"))
def test_a_run_is_held_to_the_pipeline_of_the_library(family: str, tmp_path: Path):
    spec = resolved(make_transcriber(tmp_path / "m", family, **SETTINGS[family]))
    assert spec.task.kind == "transcribe"
    assert hold_to_library(spec).endswith("on 3 clips")


@FAMILY
def test_each_text_is_that_of_the_clip_alone_whatever_is_beside_it(family: str, tmp_path: Path):
    """Clips of one length share a batch; families without a mask would hear padding."""
    import torch
    import transformers

    path = make_transcriber(tmp_path / "m", family, **SETTINGS[family])
    lengths_s = [0.3, 1.0, 0.3, 0.62, 1.0, 0.3, 1.7, 0.62]
    clips = [noise(number, length_s) for number, length_s in enumerate(lengths_s)]
    clips += [tone(0.3), np.zeros(4_800, np.float32)]
    files = [encoded(clip, subtype="FLOAT") for clip in clips]
    rows = pa.table(
        {
            "row_id": [str(row) for row in range(len(files))],
            "uri": [""] * len(files),
            AUDIO: pa.array(files, pa.large_binary()),
            **failure_columns([None] * len(files)),
        }
    )
    spec = resolved(path)
    prepared = spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))
    engine = open_engine(PredictorConfig(spec, 4, 0, 1, pa.schema([])))
    table = engine.predict(prepared, {})
    files_of = dict.fromkeys(("model", "tokenizer", "feature_extractor"), str(path))
    run = transformers.pipeline("automatic-speech-recognition", device="cpu", **files_of)
    texts = table["text"].to_pylist()
    assert len({*texts}) > 5, "the clips are told apart"
    num_clear = 0
    for clip, text, score in zip(clips, texts, table["mean_logprob"].to_pylist(), strict=True):
        heard = run.feature_extractor(clip, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            best = run.model(heard.input_values).logits.log_softmax(-1).topk(2).values[0]
        assert score == pytest.approx(float(best[:, 0].mean()), abs=1e-4)
        if float((best[:, 0] - best[:, 1]).min()) > 1e-4:  # no frame has two tokens as likely
            assert text == run(clip.copy())["text"]
            num_clear += 1
    assert num_clear > len(clips) / 2


def decoded(settings: Transcription, ids: list[int]) -> str:
    text = settings.text(ids)
    return clean(text) if settings.cleans else text


@FAMILY
def test_frames_become_the_text_that_the_processor_decodes(family: str, tmp_path: Path):
    import transformers

    path = make_transcriber(tmp_path / "m", family, **SETTINGS[family])
    settings = read_facts(path).transcription
    assert settings is not None
    assert settings.tokens == TOKENS
    processor = transformers.Wav2Vec2Processor.from_pretrained(path)
    drawn = np.random.default_rng(1)
    rows = [
        drawn.integers(0, len(TOKENS), 40).repeat(drawn.integers(1, 3, 40)).tolist()
        for _ in range(100)
    ]
    assert [decoded(settings, row) for row in rows] == processor.batch_decode(rows)


def test_the_vocabulary_of_a_language_is_the_one_that_the_tokenizer_takes(tmp_path: Path):
    path = make_transcriber(tmp_path / "m", "wavlm", target_lang="de")
    tokens = {token: number for number, token in enumerate(TOKENS)}
    turned = {token: len(TOKENS) - 1 - number for number, token in enumerate(TOKENS)}
    write_json(path / "vocab.json", {"en": tokens, "de": turned})
    settings = read_facts(path).transcription
    assert settings is not None
    assert settings.tokens == TOKENS[::-1]


def _without_vocabulary(path: Path) -> None:
    (path / "vocab.json").unlink()


def _of_phonemes(path: Path) -> None:
    change_json(
        path / "tokenizer_config.json",
        tokenizer_class="Wav2Vec2PhonemeCTCTokenizer",
        do_phonemize=False,
    )


REFUSED = {
    "no vocabulary": (_without_vocabulary, "makes no tokenizer of vocab.json and tokenizer_config"),
    "half a character": (
        lambda path: write_json(path / "vocab.json", {"<pad>": 0, "\ud800": 1}),
        "makes no tokenizer of vocab.json .* surrogates not allowed",
    ),
    "no vocabulary of a language": (
        lambda path: write_json(path / "vocab.json", {"de": {"<pad>": 0}}),
        "makes no tokenizer of vocab.json",
    ),
    "texts of another kind": (
        _of_phonemes,
        r"Wav2Vec2PhonemeCTCTokenizer of transformers [\d.]+ writes .* and .* is written here",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_tokenizer_that_cannot_be_followed_is_refused_in_one_line(case: str, tmp_path: Path):
    change, words = REFUSED[case]
    path = make_transcriber(tmp_path / "m", "wavlm")
    change(path)
    with pytest.raises(JobError, match=words) as caught:
        read_facts(path)
    assert "\n" not in str(caught.value)


def test_only_models_of_frames_are_read_with_their_vocabulary(tmp_path: Path):
    """A vocabulary beside another model changes no digest, for nothing is read of it."""
    for name, make, is_read in (
        ("transcriber", make_transcriber, True),
        ("classifier", make_listener, False),
    ):
        path, digests = make(tmp_path / name, next(iter(FAMILIES))), set()
        for words in (["a"], ["b"]):
            write_json(path / "vocab.json", words)
            digests.add(open_directory(str(path))[0].sha256)
        assert len(digests) == 1 + is_read


def test_the_other_task_is_named(tmp_path: Path):
    path = make_transcriber(tmp_path / "m", "wavlm")
    with pytest.raises(JobError, match="serves transcribe; take task 'transcribe', which"):
        resolved(path, task="generate")
