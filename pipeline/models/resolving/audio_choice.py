"""What a clip of sound becomes for a job: what the model directory says, or the job."""

from __future__ import annotations

from dataclasses import replace

from pipeline.core.errors import JobError
from pipeline.job.audio import Audio
from pipeline.preprocessing.audio.audio_settings import USUAL_MAX_S, AudioSettings


def choose_audio(name: str, wanted: Audio, own: AudioSettings | None) -> AudioSettings:
    """Choose sample rate and longest clip.

    Args:
        name: The model, for messages.
        wanted: The job's section.
        own: What the model directory says; None for a model without one.

    Raises:
        JobError: There is no rate, or the model hears another one, or shorter clips.
    """
    if own is None:
        if wanted.sample_rate_hz is None:
            raise JobError(
                f"audio.sample_rate_hz: {name} says none; give the samples per second that it hears"
            )
        return AudioSettings(wanted.sample_rate_hz, wanted.max_s or USUAL_MAX_S)
    if wanted.sample_rate_hz not in (None, own.sample_rate_hz):
        raise JobError(
            f"audio.sample_rate_hz = {wanted.sample_rate_hz}: {name} hears {own.sample_rate_hz}; "
            "leave it out: clips are resampled"
        )
    if wanted.max_s is not None and own.shape and wanted.max_s > own.max_s:
        raise JobError(f"audio.max_s = {wanted.max_s:g}: {name} hears {own.max_s:g} s at most")
    return replace(own, max_s=wanted.max_s or own.max_s)
