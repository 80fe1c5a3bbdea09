"""Facts of directories whose model takes clips of sound: tasks, feature extractor, vectors.

The library makes the extractor and the features of a few clips, which are compared with ours. The
model then runs on them without numbers: the shapes of its outputs give the rest.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.errors import JobError
from pipeline.models.directories import probes
from pipeline.models.directories.facts import CTC, TOWERS, DirectoryFacts, Pooling
from pipeline.models.directories.files import (
    CONFIG,
    PROCESSOR,
    TOKENIZER_CONFIG,
    VOCABULARY,
    preview,
    processor_settings,
)
from pipeline.models.directories.library import (
    FACTORY_ADVICE,
    TOKENIZER_ADVICE,
    library_errors,
)
from pipeline.models.directories.model_class import ModelClass, labels_of, tasks_of
from pipeline.models.directories.text.media_prompts import speech_facts
from pipeline.models.generate.build import clean
from pipeline.models.generate.spec import SPEECH, Transcription
from pipeline.preprocessing.audio.audio_input import extracted
from pipeline.preprocessing.audio.audio_settings import (
    NORMALISED,
    USUAL_LONG_S,
    USUAL_MAX_S,
    AudioSettings,
)

TOLERANCE = 1e-4
"""Largest difference of a feature, a normalised sample or a logarithm; 2e-6 was seen."""
_RATES_HZ = range(1_000, 768_001)
_MOST_NUMBERS = 1 << 23
"""Limit of the features of a clip."""
_FRAME_S = 0.01
"""Length of a frame of extractors that do not give a number of samples."""
_TOWER = "get_audio_features"


def audio_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that takes clips.

    Raises:
        JobError: The directory is refused.
    """
    named = chosen.named.__name__
    tasks: tuple[str, ...] = ("embed",)
    labels, dim, pooling, module, written = None, None, None, chosen.facts, None
    transcription = None
    if chosen.head != SPEECH and chosen.head != "audio" and chosen.config.is_encoder_decoder:
        raise JobError(
            f"model.path: {CONFIG}: {named} has a decoder beside its encoder; expected an encoder "
            "of clips, or a classification"
        )
    audio, note = read_extractor(folder, chosen)
    given = _outputs(chosen, audio)
    if chosen.head == SPEECH:
        written = speech_facts(folder, chosen)
        if written.writes_windows:
            audio = replace(audio, max_s=max(audio.max_s, USUAL_LONG_S), window_s=audio.max_s)
        tasks, what = ("generate",), "writes what is said"
    elif chosen.head == CTC:
        transcription = transcription_facts(folder, given["logits"][-1])
        tasks, what = ("transcribe",), f"{len(transcription.tokens)} tokens per frame, greedily"
    elif chosen.head == "audio":
        labels = labels_of(chosen.config, chosen.values)
        tasks = tasks_of("audio", labels, chosen.values, scores_pairs=False)
        what = f"{len(labels)} outputs, {', '.join(tasks)}"
    elif hasattr(chosen.built, _TOWER):
        dim, module = given["pooler_output"][-1], replace(module, head=TOWERS)
        what = f"{dim} numbers per clip"
    elif "audio_embeds" in given:
        dim, pooling = given["audio_embeds"][-1], Pooling(("projection",), ("projection",))
        what = f"{dim} numbers per clip"
    else:
        known = ("pooler", "mean") if "pooler_output" in given else ("mean",)
        dim, pooling = given["last_hidden_state"][-1], Pooling(known[:1], known)
        what = f"pooling {known[0]}; {dim} numbers per clip"
    return chosen.directory(
        "audio",
        tasks,
        labels=labels,
        embedding_dim=dim,
        module=module,
        audio=audio,
        pooling=pooling,
        generation=written,
        transcription=transcription,
        notes=(f"{CONFIG}: {named}, {what}", note, *([written.note] if written else [])),
    )


def transcription_facts(folder: Path, num_outputs: int) -> Transcription:
    """Ask the library's tokenizer how frames become texts, and hold ours of some frames to it.

    Raises:
        JobError: It makes no tokenizer, or other texts than we do.
    """
    from transformers import AutoTokenizer

    library = f"transformers {version('transformers')}"
    files = f"{VOCABULARY} and {TOKENIZER_CONFIG}"
    with library_errors(f"makes no tokenizer of {files}", TOKENIZER_ADVICE):
        made: Any = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        settings = Transcription(
            tokens=(*map(str, made.convert_ids_to_tokens([*range(num_outputs)])),),
            blank=str(made.pad_token),
            delimiter=getattr(made, "word_delimiter_token", None),
            space=str(getattr(made, "replace_word_delimiter_char", " ")),
            lowers=bool(getattr(made, "do_lower_case", False)),
            cleans=bool(made.clean_up_tokenization_spaces),
        )
        "".join(settings.tokens).encode()  # halves of characters are refused
        theirs = [(ids, made.decode(ids)) for ids in probes.frames(settings.tokens)]
    for ids, expected in theirs:
        text = settings.text(ids)
        if (actual := clean(text) if settings.cleans else text) != expected:
            raise JobError(
                f"model.path: {type(made).__name__} of {library} writes {preview(expected)} of "
                f"{len(ids)} frames, and {preview(actual)} is written here; {FACTORY_ADVICE}"
            )
    return settings


def read_extractor(folder: Path, chosen: ModelClass) -> tuple[AudioSettings, str]:
    """Ask the library for the feature extractor of a directory, and compare its features with ours.

    Returns:
        The settings, with the longest clip that the model takes, and a note for `pipeline plan`.

    Raises:
        JobError: There is none, or its features differ; names the clip and both values.
    """
    from transformers import AutoFeatureExtractor

    where, values = processor_settings(folder, chosen.at, "feature_extractor")
    if not values:
        raise JobError(f"model.path: {PROCESSOR} with a feature extractor is missing")
    clips = probes.clips()
    with library_errors(f"makes no features with {where}"):
        made: Any = AutoFeatureExtractor.from_pretrained(
            folder / chosen.at, local_files_only=True, trust_remote_code=False
        )
        shapes = [_features(made, clip).shape for clip in clips]
    rate, name = made.sampling_rate, type(made).__name__
    if rate not in _RATES_HZ:
        raise JobError(f"model.path: {where}: sampling_rate is {preview(rate)} Hz")
    if shapes == [clip.shape for clip in clips]:
        is_normalised = bool(getattr(made, "do_normalize", False))
        options = {"sampling_rate": rate, "feature_size": 1, "do_normalize": is_normalised}
        settings = AudioSettings(rate, USUAL_MAX_S, NORMALISED, options)
        note = f"{rate} Hz, {'normalised, ' if is_normalised else ''}clips of any length"
    elif len(set(shapes)) == 1 and math.prod(shapes[0]) <= _MOST_NUMBERS:
        length_s = _heard_s(made, shapes[0])
        max_s = min(USUAL_MAX_S, length_s)
        settings = AudioSettings(rate, max_s, name, _options(made), shapes[0])
        frames = " x ".join(map(str, shapes[0]))
        note = f"{rate} Hz, {frames} features of clips up to {length_s:g} s ({name})"
    else:
        raise JobError(
            f"model.path: {where}: the features of {name} have shapes {preview(shapes)}, expected "
            f"the samples, or one shape for clips of all lengths; {FACTORY_ADVICE}"
        )
    library = f"transformers {version('transformers')}"
    for clip in clips:
        heard = clip[: settings.max_samples]
        probe = f"a clip of {len(heard)} samples"
        expected, ours = _features(made, heard), extracted(settings, heard)
        probes.require_same(probe, "features", library, expected, ours, TOLERANCE)
    return settings, f"{where}: {note}"


def _features(extractor: Any, clip: Any) -> Any:
    made = extractor(clip, sampling_rate=extractor.sampling_rate, return_tensors="np")
    return np.asarray(made[extractor.model_input_names[0]][0])


def _heard_s(extractor: Any, shape: tuple[int, ...]) -> float:
    """Return the length in seconds of the longest clip that features of one shape hold."""
    for name in ("n_samples", "nb_max_samples"):
        if (samples := getattr(extractor, name, None)) is not None:
            return float(samples / extractor.sampling_rate)
    return shape[0] * _FRAME_S


def _options(extractor: Any) -> Mapping[str, Any]:
    """Return the arguments that make the same extractor."""
    names = inspect.signature(type(extractor).__init__).parameters
    return {name: getattr(extractor, name) for name in names if hasattr(extractor, name)}


def _outputs(chosen: ModelClass, audio: AudioSettings) -> Mapping[str, tuple[int, ...]]:
    """Run the class on a clip without numbers, and return output name -> shape.

    Raises:
        JobError: It takes other features.
    """
    import torch

    shape = audio.shape or (len(probes.clips()[0]),)
    model = chosen.module
    what = f"runs no {chosen.built.__name__} on these features"
    with library_errors(what), torch.device("meta"), torch.inference_mode():
        features = torch.empty(1, *shape)
        if hasattr(model, _TOWER):
            given = model.get_audio_features(input_features=features)
        else:
            name = model.main_input_name
            model = model.get_encoder() if chosen.head == SPEECH else model
            given = model(**{name: features})
    return {name: tuple(value.shape) for name, value in given.items() if hasattr(value, "shape")}
