"""Section `gates` of the job file: conditions for publishing a partition.

Every gate has a mode, its highest severity: `off`, `warn` or `fail`. `warn` reports a failure,
`fail` also refuses to publish. By default, signs of breakage (too many errors, identical
predictions, a fifth of the usual rows, a golden row that differs) refuse, and changes that may be
real (drift) warn. A first partition has nothing to be compared with, and is only recorded.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from pipeline.core.failures import Reason
from pipeline.job.section import NotNegative, Percent, PositiveInt, Section

Mode = Literal["off", "warn", "fail"]


class Volume(Section):
    """Row count compared with the median of earlier partitions: those with the same key and an
    earlier date or number. Checked if this partition or the median has at least `gates.min_rows`
    rows, and not with `run.limit_rows`."""

    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`."""
    warn_pct: NotNegative = 30.0
    """Warn if the count differs from the median by more than this percentage of the median."""
    max_drop_pct: Percent = 80.0
    """Fail if the count is lower by more than this percentage of the median."""
    max_growth_pct: NotNegative = 400.0
    """Fail if the count is higher by more than this percentage of the median."""
    history_partitions: PositiveInt = 7
    """Number of earlier partitions, the newest ones, in the median."""


class Drift(Section):
    """The population stability index (PSI) compared with the last earlier partition or, if there is
    none, with the version that is replaced."""

    mode: Mode = "warn"
    """Highest severity: `off`, `warn` or `fail`."""
    warn_psi: NotNegative = 0.1
    """Warn above this PSI."""
    fail_psi: NotNegative = 0.25
    """Fail above this PSI, if `mode` is `fail`."""
    min_rows: PositiveInt = 1000
    """Fewest predictions, on both sides, for a check."""

    @model_validator(mode="after")
    def _ordered(self) -> Drift:
        if self.warn_psi > self.fail_psi:
            raise ValueError(
                f"warn_psi ({self.warn_psi:g}) must not exceed fail_psi ({self.fail_psi:g})"
            )
        return self


class Constant(Section):
    """Identical predictions: one label and one score, one vector, or the same numbers. Checked from
    `gates.min_rows` predictions; not for task `raw`."""

    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`."""
    tolerance: NotNegative = 1e-6
    """Numbers are identical if their range is at most this fraction of the largest."""


class Golden(Section):
    """Rows with known predictions: every actor predicts them before its first slice."""

    uri: str = Field(min_length=1)
    """A `.parquet` file written by `pipeline golden`, or for images a folder `<label>/<image
    file>`; at most 1,024 rows."""
    mode: Mode = "fail"
    """Highest severity: `off`, `warn` or `fail`. `fail` ends the run before the actor predicts
    anything else."""
    max_score_diff: Annotated[float, Field(ge=0, le=1)] | None = None
    """Task `classify`: largest difference of a score from that of the file. Default: 0.001 for
    precision fp32, `gates.max_score_diff` for others and with `shrink_on_load`. A column
    `tolerance` takes precedence."""
    storage_options: dict[str, Any] = Field(default_factory=dict, repr=False)
    """fsspec options for the golden rows; never written anywhere."""


class Gates(Section):
    """Conditions for publishing. Conservation and unique ids are always required."""

    max_error_pct: Percent = 5.0
    """Fail if more than this percentage of the rows was quarantined, or if more than this
    percentage of the shards, or of their bytes, cannot be read to the end."""
    error_mode: Mode = "fail"
    """Highest severity of `max_error_pct`: `off`, `warn` or `fail`."""
    max_reason_pct: dict[str, Percent] = Field(default_factory=dict)
    """Fail if more than this percentage of the rows has this reason (`{truncated: 0.5}`)."""
    reason_mode: Mode = "fail"
    """Highest severity of `max_reason_pct`: `off`, `warn` or `fail`."""
    max_skipped_pct: Percent = 0.0
    """Fail if more than this percentage of the files below `source.uri` is not input: another
    extension, a link to a folder, a name that is not UTF-8 and so on (pipeline/runs/README.md)."""
    skipped_mode: Mode = "warn"
    """Highest severity of `max_skipped_pct`: `off`, `warn` or `fail`."""
    max_truncated_pct: Percent = 5.0
    """Texts: fail if more than this percentage of the rows had more tokens than `text.max_tokens`,
    so that the model saw only a part of them."""
    truncated_mode: Mode = "warn"
    """Highest severity of `max_truncated_pct`: `off`, `warn` or `fail`."""
    max_repeating_pct: Percent = 5.0
    """Task `generate`: fail if more than this percentage of the outputs does not end but repeats
    the same few tokens."""
    repeating_mode: Mode = "warn"
    """Highest severity of `max_repeating_pct`: `off`, `warn` or `fail`."""
    min_rows: Annotated[int, Field(ge=0)] = 100
    """Fewest rows for a check of `max_error_pct`, `max_reason_pct`, `max_truncated_pct`,
    `max_repeating_pct`, `volume` and `constant`. Below, only unreadable shards and the failure of
    all rows count."""
    allow_empty: bool = False
    """Publish an empty partition if there is no input, instead of failing."""
    min_agreement_pct: Percent = 99.0
    """A runtime or precision other than eager fp32 is used, and its predictions are published, only
    if at least this percentage of sampled rows agrees with eager fp32."""
    agreement_mode: Mode = "fail"
    """Highest severity of that comparison before publishing; `off` skips it. `auto` chooses only
    what agrees, whatever the mode."""
    carried_mode: Mode = "fail"
    """Highest severity of the check of reused rows (`run.reuse`): a sample is predicted again, and
    each row must agree. `off` skips it."""
    max_score_diff: Annotated[float, Field(ge=0, le=1)] = 0.05
    """Task `classify`: a row agrees if its best label is the same and the probability of that label
    differs by at most this."""
    min_cosine: Annotated[float, Field(ge=0, le=1)] = 0.999
    """Task `embed`: a row agrees from this cosine similarity."""
    max_relative_error: NotNegative = 0.01
    """Tasks `regress` and `raw`: a row agrees up to this relative error of its numbers."""
    volume: Volume = Volume()
    """Row count compared with earlier partitions."""
    constant: Constant = Constant()
    """Identical predictions."""
    label_drift: Drift = Drift()
    """Distribution of labels compared with the last earlier partition; task `generate`: of finish
    reasons."""
    score_drift: Drift = Drift()
    """Distribution of scores compared with the last earlier partition; task `regress`: of its
    numbers; `embed`: of length and direction of the vectors; not for task `raw`."""
    golden: Golden | None = None
    """Rows with known predictions, compared on every actor before it starts."""

    @field_validator("max_reason_pct")
    @classmethod
    def _known_reasons(cls, caps: dict[str, float]) -> dict[str, float]:
        known = [reason.value for reason in Reason]
        for name in caps:
            if name not in known:
                raise ValueError(f"{name!r} is not a reason; allowed are {', '.join(known)}")
        return caps
