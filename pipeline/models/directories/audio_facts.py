"""Models that hear clips of sound: their tasks, and the numbers of their feature extractors.

No extractor of a directory is run: its numbers are read, as data and bounded, for classes of an
allow-list. What makes features depend on chance, as dither does, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.chosen import CLAP, CONFIG, ModelClass, width_of
from pipeline.models.directories.facts import SPEECH, TOWERS, DirectoryFacts, Pooling
from pipeline.models.directories.json_files import (
    PROCESSOR,
    checked,
    preview,
    processor_settings,
    read_value,
)
from pipeline.models.directories.text.writing.features import speech_facts
from pipeline.preprocessing.audio.audio_settings import (
    NORMALISED,
    SPECTROGRAMS,
    USUAL_MAX_S,
    AudioSettings,
)

_AST, _WHISPER, _CLAP = SPECTROGRAMS
_CLASSES = (NORMALISED, *SPECTROGRAMS)
_RATES_HZ, _BINS = range(1_000, 768_001), range(1, 513)
_HOPS, _FRAME, _SECONDS = range(16, 4_097), range(16, 8_193), range(1, 121)
_WHOLE = {
    NORMALISED: (("sampling_rate", 16_000, _RATES_HZ), ("feature_size", 1, range(1, 2))),
    _AST: (
        ("sampling_rate", 16_000, range(16_000, 16_001)),  # its frames are of 400 samples
        ("num_mel_bins", 128, _BINS),
        ("max_length", 1_024, range(1, 16_385)),
    ),
    _WHISPER: (
        ("sampling_rate", 16_000, _RATES_HZ),
        ("feature_size", 80, _BINS),
        ("hop_length", 160, _HOPS),
        ("chunk_length", 30, _SECONDS),
        ("n_fft", 400, _FRAME),
    ),
    _CLAP: (
        ("sampling_rate", 48_000, _RATES_HZ),
        ("feature_size", 64, _BINS),
        ("hop_length", 480, _HOPS),
        ("max_length_s", 10, _SECONDS),
        ("fft_window_size", 1_024, _FRAME),
    ),
}
"""Class -> the whole numbers that it takes: name, the library's default, and what can be."""
_REAL: Mapping[str, Mapping[str, float]] = {
    NORMALISED: {},
    _AST: {"mean": -4.2677393, "std": 4.5689974},
    _WHISPER: {"padding_value": 0.0},
    _CLAP: {"frequency_min": 0.0, "frequency_max": 14_000.0},
}
_MUST: Mapping[str, Mapping[str, tuple[Any, ...]]] = {
    NORMALISED: {},
    _AST: {},
    _WHISPER: {"dither": (0, None), "padding_side": ("right", None)},
    _CLAP: {"truncation": ("rand_trunc",), "padding": ("repeatpad", "repeat", "pad")},
}
"""Class -> what else decides its features, and the values that are taken."""
_AST_HOP = 160
_MAX_NUMBER = 1e6
_POOLED = "audio-spectrogram-transformer"
"""The model type that has a vector of the whole clip of its own."""


class _Window(NamedTuple):
    """The features of a clip, if they have one shape."""

    shape: tuple[int, ...]
    length_s: float
    config: Mapping[str, Any]
    """What the model's config must say."""


def read_extractor(folder: Path, chosen: ModelClass) -> tuple[AudioSettings, str]:
    """Read the feature extractor of a snapshot.

    Returns:
        The settings, with the longest clip that the model hears, and what is said of them.

    Raises:
        JobError: There is none, or one that is not known here.
    """
    where, values = processor_settings(folder, chosen.at, "feature_extractor")
    name = read_value(values, "feature_extractor_type", where, str) or _usual(chosen)
    if not values or name not in _CLASSES:
        problem = f"its feature extractor is {preview(name)}" if values else f"no {PROCESSOR}"
        raise JobError(f"model.path: {where}: {problem}, expected one of {', '.join(_CLASSES)}")
    options: dict[str, Any] = {
        key: checked(values.get(key, usual), key, where, int, ge=may[0], le=may[-1])
        for key, usual, may in _WHOLE[name]
    }
    for key, usual in _REAL[name].items():
        above = 0.0 if key == "std" else -_MAX_NUMBER
        value = values.get(key, usual)
        options[key] = checked(value, key, where, float, gt=above, lt=_MAX_NUMBER)
    for key, taken in _MUST[name].items():
        if values.get(key) not in taken:
            expected = " or ".join(map(preview, taken))
            raise JobError(
                f"model.path: {where}: {key} is {preview(values.get(key))}, expected {expected}"
            )
    if name == _CLAP:
        options |= {key: values[key] for key in _MUST[name]}
    if name in (NORMALISED, _AST):
        options["do_normalize"] = read_value(values, "do_normalize", where, bool, True)
    rate = options["sampling_rate"]
    if name == NORMALISED:
        how = "normalised, " if options["do_normalize"] else ""
        note = f"{where}: {rate} Hz, {how}clips of any length"
        return AudioSettings(rate, USUAL_MAX_S, name, options), note
    window = _window(name, options)
    for key, wanted in window.config.items():
        config = getattr(chosen.config, "audio_config", chosen.config)
        if (has := getattr(config, key, None)) != wanted:
            raise JobError(
                f"model.path: {CONFIG}: {key} is {preview(has)}, and {where} gives {wanted}"
            )
    length_s, frames = window.length_s, " x ".join(map(str, window.shape))
    note = f"{where}: {rate} Hz, {frames} features of clips up to {length_s:g} s ({name})"
    return AudioSettings(rate, min(USUAL_MAX_S, length_s), name, options, window.shape), note


def _window(name: str, options: Mapping[str, Any]) -> _Window:
    rate = options["sampling_rate"]
    if name == _AST:
        frames, bins = options["max_length"], options["num_mel_bins"]
        config = {"num_mel_bins": bins, "max_length": frames}
        return _Window((frames, bins), frames * _AST_HOP / rate, config)
    bins, hop = options["feature_size"], options["hop_length"]
    if name == _WHISPER:
        length_s = options["chunk_length"]
        frames = length_s * rate // hop
        config = {"num_mel_bins": bins, "max_source_positions": frames // 2}
        return _Window((bins, frames), float(length_s), config)
    length_s = options["max_length_s"]
    # Where models fuse features, which parts of a clip they hear is chosen by chance.
    config = {"num_mel_bins": bins, "enable_fusion": False}
    return _Window((1, length_s * rate // hop + 1, bins), float(length_s), config)


def _usual(chosen: ModelClass) -> str | None:
    """Return the extractor that the library takes for a model type if the file names none."""
    from transformers import FEATURE_EXTRACTOR_MAPPING

    extractor = FEATURE_EXTRACTOR_MAPPING.get(type(chosen.config), None)
    return None if extractor is None else str(extractor.__name__)


def audio_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that hears clips.

    Raises:
        JobError: The directory is refused.
    """
    tasks: tuple[str, ...]
    labels, dim, pooling, module = None, None, None, chosen.facts
    written = None
    if chosen.head == SPEECH:
        written = speech_facts(folder, chosen)
        tasks, what = ("generate",), "writes what is said"
    elif chosen.head == "audio":
        labels = heads.labels_of(chosen.config, chosen.values)
        tasks = heads.tasks_of("audio", labels, chosen.values, scores_pairs=False)
        what = f"{len(labels)} outputs, {', '.join(tasks)}"
    elif chosen.config.model_type.startswith(CLAP):
        dim = width_of(chosen.config, "projection_dim")
        tasks, what = ("embed",), f"{dim} numbers per clip"
        if chosen.config.model_type == CLAP:
            module = replace(module, head=TOWERS)
        else:
            pooling = Pooling(("projection",), ("projection",))
    else:
        if chosen.config.is_encoder_decoder:
            raise JobError(
                f"model.path: {CONFIG}: {chosen.named.__name__} has a decoder beside its encoder; "
                "expected an encoder of clips, or a classification"
            )
        known = ("pooler", "mean") if chosen.config.model_type == _POOLED else ("mean",)
        pooling = Pooling(known[:1], known)
        dim = width_of(chosen.config, "output_hidden_size", "hidden_size")
        tasks, what = ("embed",), f"pooling {known[0]}; {dim} numbers per clip"
    audio, note = read_extractor(folder, chosen)
    return chosen.directory(
        "audio",
        tasks,
        labels=labels,
        embedding_dim=dim,
        module=module,
        audio=audio,
        pooling=pooling,
        generation=written,
        notes=(
            f"{CONFIG}: {chosen.named.__name__}, {what}",
            note,
            *([written.note] if written else []),
        ),
    )
