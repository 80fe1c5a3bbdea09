"""The sections of report.json that a run states as they are; speed/ computes the others."""

from __future__ import annotations

import math
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """A part of report.json: frozen, closed, and without NaN; what is not known is null."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_or_null(cls, values: Any) -> Any:
        # JSON has no NaN and no Infinity.
        if not isinstance(values, dict):
            return values
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    def but(self, **changes: Any) -> Self:
        """Return this section with other values of some fields, validated like the first ones."""
        return type(self)(**{**dict(self), **changes})


class Rows(Section):
    """Rows of the partition; rows of unreadable shards are unknown and not counted."""

    total: int | None = None
    """Rows of the input: predicted + quarantined."""
    predicted: int | None = None
    quarantined: int | None = None
    computed: int | None = None
    """Went through the stages in this run."""
    resumed: int | None = None
    """Taken over, finished, from an earlier run."""
    carried: int | None = None
    """Not computed: their predictions are those of an earlier version; null if nothing could be
    carried over. `total` is computed + resumed + carried, and the rows that a retry keeps in the
    quarantine: `duplicate_ids` and `not_asked` of its section."""
    left: int | None = None
    """Not computed yet when the run ended; null if unknown."""


class Slices(Section):
    """Slices: the grain of resuming."""

    total: int | None = None
    computed: int | None = None
    resumed: int | None = None
    left: int | None = None


class SkippedReason(Section):
    """Files that were skipped for one reason."""

    reason: str
    files: int
    first: list[str] = Field(default_factory=list)
    """Their first names, relative to the source."""


class SkippedExtension(Section):
    """Files of one extension, of reason `extension`."""

    extension: str
    files: int


class SkippedFiles(Section):
    """Files below the source that are no input; null if it was not listed."""

    files: int | None = None
    judged: int | None = None
    """Of those, what `gates.max_skipped_pct` counts."""
    reasons: list[SkippedReason] = Field(default_factory=list)
    extensions: list[SkippedExtension] = Field(default_factory=list)


class Hardware(Section):
    """What the cluster had in the mean, while the run went on."""

    nodes: int | float | None = None
    cpus: float | None = None
    gpus: float | None = None
    gpu_name: str | None = None
    """Of several kinds all names."""


class OverTime(Section):
    """The stream in bins of equal width, from its begin."""

    bin_s: float
    rows: list[int]
    """Computed rows whose slice was committed in each bin."""
    actors: list[int]
    """Actors that had given a slice by the end of each bin."""


class Choice(Section):
    """What runs the model, and why."""

    reason: Literal["job", "measured", "known", "unknown", "begun"]
    """`job`: the job says it; `measured`: this run did so before it started; `known`: an earlier
    run did, or `pipeline tune`; `unknown`: nothing did; `begun`: the work was begun so."""
    text: str
    """The choice and its reason in one line."""
    gain: float | None = None
    """Rows/s beside those of eager fp32, of one actor and the model alone."""
    num_compared: int | None = None
    """Rows of which `agreement_pct` is a share."""
    measured_by: str | None = None
    """The run that measured, or `tune`."""
    measured_at: str | None = None
    """The date, UTC."""


class ModelSection(Section):
    """What predicted."""

    name: str | None = None
    weights_sha256: str | None = None
    runtime: str | None = None
    precision: str | None = None
    float32_math: str | None = None
    """How float32 was multiplied: `ieee`, exactly, or `tf32`. All of torch's flags are set so."""
    agreement_pct: float | None = None
    """Share of sampled rows that agreed with eager fp32 when `auto` chose."""
    agreement_worst: float | None = None
    """Largest difference of scores, smallest cosine, or largest relative error of that sample."""
    scores: str | None = None
    """What the outputs are, in a sentence, if they are not plainly logits."""
    artefact_sha256: str | None = None
    """Precision int8: digest of the calibrated model that ran."""
    choice: Choice | None = None
    """Null until it is known what runs the model."""
    device: str | None = None
    devices: dict[str, int] = Field(default_factory=dict)
    """Processor, or GPU with driver and libraries -> rows of the partition that it predicted."""
    advice: list[str] = Field(default_factory=list)
    """What would make the model faster on them, in a sentence each."""
    batch_size: int | None = None
    """The most rows of one model call."""
    batch_tokens: int | None = None
    """The most tokens of one model call, padding included; null if rows have none."""


class Output(Section):
    """What was published, and where the rest lies; null is what there is not."""

    uri: str | None = None
    """Of the predictions."""
    version: int | None = None
    """Number of the version that is published."""
    quarantine: str | None = None
    report: str | None = None
    """Of report.html; report.json lies beside it."""
    parts: int | None = None
    bytes: int | None = None


class Retry(Section):
    """What `pipeline retry` made of the quarantine of a published version."""

    base_version: int | None = None
    """Version whose quarantine it was."""
    entries: int | None = None
    """Rows of that quarantine that went again; of a shard that could not be read there is one."""
    recovered: int | None = None
    """Rows that are predicted now."""
    failed_again: int | None = None
    duplicate_ids: int | None = None
    """Rows that stay in the quarantine because others have their ids."""
    not_asked: int | None = None
    """Rows that stay because other reasons were asked for."""


class CarriedFrom(Section):
    """A version that predictions are taken from."""

    partition: str
    version: int
    rows: int
    """Found without reading the input; what is found by content comes on top."""


class Carried(Section):
    """Which predictions are those of earlier versions (`run.reuse`), or why none is."""

    rows: int = 0
    """Whose predictions are taken over."""
    why_not: str | None = None
    """Why there are none, or none of the newest version."""
    looked_at: int = 0
    """Earlier versions that were looked at."""
    sources: list[CarriedFrom] = Field(default_factory=list)
    """The newest first."""
    new_rows: int | None = None
    """Rows of shards that the newest source does not have; null where only reading counts them."""
    changed_rows: int | None = None
    """Rows of shards that are not as they were then; null likewise."""
    failed_rows: int | None = None
    """Rows of unchanged shards that had no prediction, and are computed again."""
    gone_rows: int | None = None
    """Rows of shards that are no longer there."""
    checked_rows: int = 0
    """Computed although their predictions are known, for the gate `carried`."""
    content_rows: int | None = None
    """Of `rows`, those that were read, and known by their content; null if none were looked up."""
    lookup_failed_rows: int | None = None
    """Computed because they could not be looked up; null likewise."""
    changed_libraries: list[str] = Field(default_factory=list)
    """What decodes, tokenises or computes and has another version than then; more are checked."""


class Gate(Section):
    """One check before publishing."""

    name: str
    status: Literal["pass", "warn", "fail", "off", "accepted"]
    """`accepted`: it failed, and `--accept` published nevertheless, for the `reason`."""
    value: float | int | str | None = None
    limit: float | int | str | None = None
    message: str | None = None
    reason: str | None = None


class LabelCount(Section):
    """How many rows were given a label."""

    label: str
    count: int


class FailedRows(Section):
    """Rows that failed alike: what their messages have in common, and one of them."""

    reason: str
    stage: str | None = None
    """Null if it is unknown."""
    message: str | None = None
    """Of the row that is named; null stands for all messages that are not told apart."""
    num_rows: int
    at_least: bool = False
    """More rows may have failed for it: of some with this reason the message was not kept."""
    row_id: str | None = None
    """One of these rows: the first by name."""
