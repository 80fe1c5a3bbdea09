"""The predictions of a directory that hears clips by its own library: each clip alone, unpadded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.core.schema import EMBEDDING
from pipeline.models.directories.facts import DirectoryFacts, LibraryClass
from pipeline.models.directories.probes import labelled
from pipeline.models.tasks.base import TaskSpec
from pipeline.preprocessing.audio.decode import Samples, decode_clip, resampled

Row = Mapping[str, Any]
_MOST_BYTES, _LONG_S = 1 << 30, 3_600.0
_ACTIVATIONS = {"classify": "softmax", "multilabel": "sigmoid"}
"""Task -> what the library's pipeline applies to the logits."""
_VECTORS = {"pooler": "pooler_output", "projection": "audio_embeds"}
"""Pooling -> the output that has the vector; of others it is the mean."""


def audio_predictions(
    path: Path, facts: DirectoryFacts, task: TaskSpec, rows: Sequence[Sequence[bytes]]
) -> list[Row | None]:
    """Return the columns of task `classify`, `multilabel` or `embed` for some clips.

    Args:
        path: The directory.
        facts: Of it.
        task: A task that it serves.
        rows: Encoded clips; what is longer than the model hears is cut.

    Returns:
        Columns as they are published, per row.
    """
    assert facts.audio is not None, "it hears clips"
    predict = _vectors(path, facts) if task.kind == "embed" else _classes(path, task)
    results: list[Row | None] = []
    for (data,) in rows:
        clip = decode_clip(data, _MOST_BYTES, _LONG_S)
        samples = resampled(clip, facts.audio.sample_rate_hz)
        results.append(predict(samples[: facts.audio.max_samples]))
    return results


def _classes(path: Path, task: TaskSpec) -> Callable[[Samples], Row]:
    import torch
    from transformers import pipeline

    names = {"model": str(path), "feature_extractor": str(path), "device": "cpu"}
    run: Any = pipeline("audio-classification", dtype=torch.float32, top_k=None, **names)

    def predict(clip: Samples) -> Row:
        entries = run(clip, function_to_apply=_ACTIVATIONS[task.kind])
        return labelled(task, ((entry["label"], entry["score"]) for entry in entries))

    return predict


def _vectors(path: Path, facts: DirectoryFacts) -> Callable[[Samples], Row]:
    import torch
    import transformers

    assert isinstance(facts.module, LibraryClass), "it is of transformers"
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    cls = getattr(transformers, facts.module.built)
    model = cls.from_pretrained(path, dtype=torch.float32, **options).eval()
    extract = transformers.AutoFeatureExtractor.from_pretrained(path, **options)
    output = _VECTORS.get(facts.pooling.modes[0] if facts.pooling else "")

    def predict(clip: Samples) -> Row:
        made = extract(clip, sampling_rate=extract.sampling_rate, return_tensors="pt")
        features = made[extract.model_input_names[0]].float()
        with torch.inference_mode():
            if facts.pooling is None:
                vectors = model.get_audio_features(features).pooler_output
            else:
                outputs = model(**{model.main_input_name: features})
                vectors = outputs[output] if output else outputs.last_hidden_state.mean(1)
        return {EMBEDDING: vectors[0].tolist()}

    return predict
