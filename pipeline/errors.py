"""The exceptions of all functions and commands, each with its exit code."""

from pipeline.core.errors import (
    AccessDenied,
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
    "AccessDenied",
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
