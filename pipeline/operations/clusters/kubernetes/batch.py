"""Jobs of Kubernetes itself: a run in one pod, with a Ray of its own; KubeRay is not needed."""

from __future__ import annotations

from pipeline.core.errors import GateRefused, JobError, PipelineError, PublishConflict
from pipeline.operations.clusters.kubernetes.asked import Asked, JobText
from pipeline.operations.clusters.kubernetes.pods import (
    CONTAINER,
    Document,
    container,
    pod,
    run_command,
    share_memory,
)

_RETRIES = 5
_KEPT_S = 24 * 3600
_LATE_S = 3600
_NO_RETRY = sorted(
    error.exit_code for error in (PipelineError, JobError, GateRefused, PublishConflict)
)
"""The same command again would end with the same."""
_NO_INPUT = "8"
_NTH_DAY = '"$(date -u -d "{} +$JOB_COMPLETION_INDEX days" +%F)"'


def job(text: JobText, asked: Asked) -> Document:
    """Return a Job for one date."""
    date = asked.date.isoformat() if asked.date else None
    spec = _job_spec(text, asked, run_command(asked, date, _NO_INPUT))
    spec["backoffLimit"] = _RETRIES
    metadata = {"name": f"{text.name}-{date}" if date else text.name, **_labels(asked)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def cron_job(text: JobText, asked: Asked) -> Document:
    """Return a CronJob, each of whose runs is about the day on which it starts."""
    spec = _job_spec(text, asked, run_command(asked, None, _NO_INPUT))
    spec["backoffLimit"] = _RETRIES
    template = {**({"metadata": labels} if (labels := _labels(asked)) else {}), "spec": spec}
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": text.name},
        "spec": {
            "schedule": asked.cron,
            "timeZone": asked.time_zone,
            # Two at once are safe, but the second would only end with 4.
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _LATE_S,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": template,
        },
    }


def indexed_job(text: JobText, asked: Asked) -> Document:
    """Return a Job with a pod for each date; one that fails does not stop the others."""
    assert asked.dates is not None
    first, last = asked.dates
    number = (last - first).days + 1
    spec = _job_spec(text, asked, run_command(asked, _NTH_DAY.format(first), _NO_INPUT))
    spec["podFailurePolicy"]["rules"][0]["action"] = "FailIndex"
    spec |= {
        "completionMode": "Indexed",
        "completions": number,
        "parallelism": min(number, asked.workers),
        "backoffLimitPerIndex": _RETRIES,
        "maxFailedIndexes": number,
    }
    metadata = {"name": f"{text.name}-{first}", **_labels(asked)}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _job_spec(text: JobText, asked: Asked, command: str) -> Document:
    main = container(
        CONTAINER, asked, cpus=asked.cpus, memory_gib=asked.memory_gib, has_gpu=text.wants_gpu
    )
    main["command"] = ["/bin/sh", "-c", f"exec {command}"]  # so that SIGTERM reaches the run
    spec = share_memory(pod(text, main), asked.memory_gib)
    spec["automountServiceAccountToken"] = False
    codes = {"containerName": CONTAINER, "operator": "In", "values": _NO_RETRY}
    found: Document = {
        "ttlSecondsAfterFinished": _KEPT_S,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": codes},
                # A node that was drained or taken away counts as no failure.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]},
            ]
        },
        "template": {"spec": spec},
    }
    # Of the pod, so that each try and each index has its own.
    if text.max_s is not None:
        spec["activeDeadlineSeconds"] = text.max_s
    if asked.queue:
        found["suspend"] = True  # until Kueue admits it
    return found


def _labels(asked: Asked) -> Document:
    return {"labels": {"kueue.x-k8s.io/queue-name": asked.queue}} if asked.queue else {}
