"""Facts of snapshots of transformers whose model hears clips of sound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.audio.extractor import read_extractor
from pipeline.models.directories.chosen import CLAP, CONFIG, ModelClass, width_of
from pipeline.models.directories.facts import SPEECH, TOWERS, DirectoryFacts, Pooling
from pipeline.models.directories.text.writing.features import speech_facts

_POOLED = "audio-spectrogram-transformer"
"""The model type that has a vector of the whole clip of its own."""


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
    audio, said = read_extractor(folder, chosen)
    return DirectoryFacts(
        kind="transformers",
        architecture=chosen.built.__name__,
        input="audio",
        tasks=tasks,
        labels=labels,
        embedding_dim=dim,
        module=module,
        audio=audio,
        pooling=pooling,
        generation=written,
        said=(
            f"{CONFIG}: {chosen.named.__name__}, {what}",
            said,
            *([written.said] if written else []),
        ),
    )
