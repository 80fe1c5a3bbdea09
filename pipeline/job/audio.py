"""The job file's section `audio`: what a clip of sound becomes."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.job.section import PositiveInt, Section


class Audio(Section):
    """How clips of sound become model input; what is left out comes from the model directory."""

    sample_rate_hz: PositiveInt | None = None
    """Samples per second that the model hears; clips of another rate are resampled. For models of
    your own: a model directory says its rate, and takes no other."""
    max_s: Annotated[float, Field(gt=0, le=3600)] | None = None
    """A longer clip is quarantined as `too_large`, before it is decoded if its header says so; none
    is cut. Left out: 30, or what the model hears at most if that is less."""
