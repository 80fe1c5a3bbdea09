"""The errors of all functions and commands, each with its exit code."""

from pipeline.core.errors import (
    GateRefused,
    InfraError,
    InputMissing,
    Interrupted,
    JobError,
    JobErrors,
    PartitionBusy,
    PipelineError,
    PublishConflict,
    Stopped,
)

__all__ = [
    "GateRefused",
    "InfraError",
    "InputMissing",
    "Interrupted",
    "JobError",
    "JobErrors",
    "PartitionBusy",
    "PipelineError",
    "PublishConflict",
    "Stopped",
]
