"""From the samples of a clip to the features that a model hears."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.preprocessing.audio.audio_settings import NORMALISED, SPECTROGRAMS, AudioSettings
from pipeline.preprocessing.audio.decode import Samples

_EPSILON = 1e-7


def extracted(settings: AudioSettings, samples: Samples) -> Samples:
    """Return the features of a clip.

    Args:
        settings: The model's.
        samples: float32 (T,), at its rate, at least one.

    Returns:
        float32 of `settings.shape`; (T,) if that is ().
    """
    if not settings.extractor:
        return samples
    if settings.extractor == NORMALISED:
        return _normalised(samples) if settings.options["do_normalize"] else samples
    extract = _extractor(settings.extractor, json.dumps(settings.options, sort_keys=True))
    # Resampling may round up; of what is too long CLAP takes a part by chance.
    heard = samples[: settings.max_samples]
    found: Samples = extract(heard).astype(np.float32, copy=False)
    return found


def _normalised(samples: Samples) -> Samples:
    """Do what `Wav2Vec2FeatureExtractor` does, whose import takes seconds, to a clip alone."""
    found: Samples = (samples - samples.mean()) / np.sqrt(samples.var() + _EPSILON)
    return found


@functools.cache
def _extractor(name: str, options: str) -> Callable[[Samples], Any]:
    """Make a feature extractor of the installed transformers; its filters are computed once."""
    import transformers

    assert name in SPECTROGRAMS, name
    numbers = json.loads(options)
    made = getattr(transformers, name)(**numbers)
    rate = numbers["sampling_rate"]

    def extract(samples: Samples) -> Any:
        features = made(samples, sampling_rate=rate, return_tensors="np")
        return features[made.model_input_names[0]][0]

    return extract
