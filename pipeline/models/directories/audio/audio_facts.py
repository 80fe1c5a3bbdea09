"""Facts of snapshots of transformers whose model hears clips of sound."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import JobError
from pipeline.models.directories import heads
from pipeline.models.directories.audio.extractor import read_extractor
from pipeline.models.directories.chosen import CONFIG, ModelClass, width_of
from pipeline.models.directories.facts import DirectoryFacts, Pooling

_POOLED = "audio-spectrogram-transformer"
"""The model type that has a vector of the whole clip of its own."""


def audio_facts(folder: Path, chosen: ModelClass) -> DirectoryFacts:
    """Read the facts of a class that hears clips.

    Raises:
        JobError: The directory is refused.
    """
    labels, dim, pooling = None, None, None
    if chosen.head == "audio":
        labels = heads.labels_of(chosen.config, chosen.values)
        tasks = heads.tasks_of("audio", labels, chosen.values, scores_pairs=False)
        what = f"{len(labels)} outputs, {', '.join(tasks)}"
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
        module=chosen.facts,
        audio=audio,
        pooling=pooling,
        said=(f"{CONFIG}: {chosen.named.__name__}, {what}", said),
    )
