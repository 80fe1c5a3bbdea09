"""The job file's section `gates`: what must hold before a partition is published.

Every gate has a mode, its highest severity: `off`, `warn`, or `fail`. What `fail` refuses
`warn` only reports. Defaults: what proves that something is broken (too many errors, all
predictions alike, a fifth of the usual rows, a differing golden row) refuses; what may be the
world's doing (drift) warns. A first partition has nothing to compare with, and is only recorded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.failures import Reason
from pipeline.job.section import NotNegative, Percent, PositiveInt, Section

Mode = Literal["off", "warn", "fail"]


class Volume(Section):
    """Rows beside the median of earlier partitions: those of the same key with an earlier date or
    number. Judged from `gates.min_rows` rows on, now or in the median; not with
    `run.limit_rows`."""

    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`."""
    warn_pct: NotNegative = 30.0
    """Warn when there are more than this share of the median fewer or more rows."""
    max_drop_pct: Percent = 80.0
    """Refuse when more than this share of the median is missing."""
    max_growth_pct: NotNegative = 400.0
    """Refuse when there are more than this share of the median too many."""
    history_partitions: PositiveInt = 7
    """The median is that of this many earlier partitions, the newest ones."""


class Drift(Section):
    """The population stability index (PSI) beside the last earlier partition, or beside the
    version that is replaced if there is none."""

    mode: Mode = "warn"
    """Highest severity: `off`, `warn` or `fail`."""
    warn_psi: NotNegative = 0.1
    """Warn above this PSI."""
    fail_psi: NotNegative = 0.25
    """Refuse above this PSI, if `mode` is `fail`."""
    min_rows: PositiveInt = 1000
    """Judged from this many predictions on, on both sides."""

    @model_validator(mode="after")
    def _ordered(self) -> Drift:
        if self.warn_psi > self.fail_psi:
            raise ValueError(
                f"warn_psi ({self.warn_psi:g}) must not exceed fail_psi ({self.fail_psi:g})"
            )
        return self


class Constant(Section):
    """All predictions alike: one label and one score, one vector, or the same numbers. Judged from
    `gates.min_rows` predictions on; not for task `raw`."""

    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`."""
    tolerance: NotNegative = 1e-6
    """Numbers are alike if their range is at most this share of the largest."""


class Golden(Section):
    """Rows whose predictions are known: every actor predicts them before its first slice."""

    uri: str = Field(min_length=1)
    """A `.parquet` file as `pipeline golden` writes it, or for images a folder
    `<label>/<image file>`; at most 1,024 rows."""
    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`. `fail` refuses the run before the
    actor predicts anything else."""
    max_score_diff: Annotated[float, Field(ge=0, le=1)] | None = None
    """Task `classify`: how far a score may be from the file's; left out: 0.001 for precision fp32,
    `gates.max_score_diff` for others and with `shrink_on_load`. A column `tolerance` wins."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options for the golden rows; never written anywhere."""


class Gates(Section):
    """What must hold before anything is published. Conservation and unique ids always must."""

    max_error_pct: Percent = 5.0
    """Refuse when more than this share of the rows was quarantined (0 to 100), or when more than
    this share of the shards, or of their bytes, cannot be read to the end."""
    error_mode: Mode = "fail"
    """Highest severity of `max_error_pct`: `off`, `warn` or `fail`."""
    max_reason_pct: dict[str, Percent] = Field(default_factory=dict)
    """Refuse when more than this share of the rows has that reason (`{truncated: 0.5}`)."""
    reason_mode: Mode = "fail"
    """Highest severity of `max_reason_pct`: `off`, `warn` or `fail`."""
    max_skipped_pct: Percent = 0.0
    """Refuse when more than this share of the files below `source.uri` is no input: another
    extension, a link to a folder, a name that is not UTF-8 and so on (pipeline/runs/README.md)."""
    skipped_mode: Mode = "warn"
    """Highest severity of `max_skipped_pct`: `off`, `warn` or `fail`."""
    max_truncated_pct: Percent = 5.0
    """Texts: refuse when more than this share of the rows had more tokens than `text.max_tokens`,
    so that the model saw a part of them."""
    truncated_mode: Mode = "warn"
    """Highest severity of `max_truncated_pct`: `off`, `warn` or `fail`."""
    max_repeating_pct: Percent = 5.0
    """Task `generate`: refuse when more than this share of the outputs has no end, for they say the
    same few tokens again and again."""
    repeating_mode: Mode = "warn"
    """Highest severity of `max_repeating_pct`: `off`, `warn` or `fail`."""
    min_rows: Annotated[int, Field(ge=0)] = 100
    """`max_error_pct`, `max_reason_pct`, `max_truncated_pct`, `max_repeating_pct`,
    `volume` and `constant` are judged from this many rows on; below, only all rows failing
    refuses, and shards that cannot be read."""
    allow_empty: bool = False
    """Publish an empty partition when there are no inputs, instead of refusing."""
    min_agreement_pct: Percent = 99.0
    """Another runtime or precision than eager fp32 is used, and its predictions are published, only
    when at least this share of sampled rows agrees with eager fp32."""
    agreement_mode: Mode = "fail"
    """Highest severity of that comparison before publishing; `off` leaves it out. `auto` chooses
    only what agrees, whatever the mode."""
    carried_mode: Mode = "fail"
    """A sample of the carried rows (`run.reuse`) is predicted again, and each must agree: highest
    severity. `off` leaves the sample out."""
    max_score_diff: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Task `classify`: a row agrees when its best label is the same and the label's probability
    differs by no more than this."""
    min_cosine: Annotated[float, Field(ge=0, le=1)] = 0.999
    """Task `embed`: a row agrees from this cosine on."""
    max_relative_error: NotNegative = 0.01
    """Tasks `regress` and `raw`: a row agrees up to this relative error of its numbers."""
    volume: Volume = Volume()
    """Rows beside the median of earlier partitions."""
    constant: Constant = Constant()
    """All predictions alike."""
    label_drift: Drift = Drift()
    """Other labels than in the last earlier partition; task `generate`: other finish reasons."""
    score_drift: Drift = Drift()
    """Other scores than in the last earlier partition; task `regress`: its numbers, `embed`: length
    and direction of the vectors; not for task `raw`."""
    golden: Golden | None = None
    """Rows whose predictions are known, compared on every actor before it starts."""

    @field_validator("max_reason_pct")
    @classmethod
    def _known_reasons(cls, caps: dict[str, float]) -> dict[str, float]:
        known = [reason.value for reason in Reason]
        for name in caps:
            if name not in known:
                raise ValueError(f"{name!r} is no reason; allowed are {', '.join(known)}")
        return caps
