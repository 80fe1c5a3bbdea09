"""Resources of KubeRay (1.6 and newer): a run on a Ray cluster that is made for it and deleted."""

from __future__ import annotations

from importlib import metadata

import yaml

from pipeline.core.environment import SUBMITTED
from pipeline.operations.clusters.kubernetes.asked import DRAIN_S, Asked, JobText
from pipeline.operations.clusters.kubernetes.pods import Document, container, pod, run_command

_OK_EXIT = "3,4,5,8"
"""KubeRay starts a new cluster after any code but 0. Of these a new cluster changes nothing."""
_RETRIES = 2
_START_S = 1800
"""For nodes to come and images to be pulled."""
_KEPT_AFTER_FAILURE_S = 3600
_HEAD_CPUS, _HEAD_GIB = 2, 8
_MODES = {"sidecar": "SidecarMode", "http": "HTTPMode"}


def ray_job(text: JobText, asked: Asked) -> Document:
    """Return a RayJob for one date."""
    date = asked.date.isoformat() if asked.date else None
    labels = {"labels": {"kueue.x-k8s.io/queue-name": asked.queue}} if asked.queue else {}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": text.name, **labels},
        "spec": _spec(text, asked, date),
    }


def ray_cron_job(text: JobText, asked: Asked) -> Document:
    """Return a RayCronJob; runs that overlap are the lease's business: the second ends at once."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": {"name": text.name},
        "spec": {
            "schedule": asked.cron,
            "timeZone": asked.time_zone,
            "jobTemplate": _spec(text, asked, None),
        },
    }


def _spec(text: JobText, asked: Asked, date: str | None) -> Document:
    # Of these modes neither has a submitter, whose own retries would hide how the job ended.
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(DRAIN_S), SUBMITTED: "1"}
    spec: Document = {
        "submissionMode": _MODES[asked.submission],
        "entrypoint": run_command(asked, date, _OK_EXIT),
        "runtimeEnvYAML": yaml.safe_dump({"env_vars": variables}),
        "backoffLimit": _RETRIES,
        "preRunningDeadlineSeconds": _START_S,
    }
    if text.max_s is not None:
        spec["activeDeadlineSeconds"] = _START_S + text.max_s
    if asked.queue:
        # Kueue starts it, and takes only jobs whose cluster goes with them; KubeRay refuses
        # deletion rules beside that.
        spec |= {"suspend": True, "shutdownAfterJobFinishes": True}
    else:
        rules = (("SUCCEEDED", 0), ("FAILED", _KEPT_AFTER_FAILURE_S))
        spec["deletionStrategy"] = {"deletionRules": [_delete(*rule) for rule in rules]}
    spec["rayClusterSpec"] = _cluster(text, asked)
    return spec


def _delete(status: str, after_s: int) -> Document:
    return {"policy": "DeleteCluster", "condition": {"jobStatus": status, "ttlSeconds": after_s}}


def _cluster(text: JobText, asked: Asked) -> Document:
    head = container("ray-head", asked, cpus=_HEAD_CPUS, memory_gib=_HEAD_GIB)
    worker = container(
        "ray-worker", asked, cpus=asked.cpus, memory_gib=asked.memory_gib, has_gpu=text.wants_gpu
    )
    number = {key: asked.workers for key in ("replicas", "minReplicas", "maxReplicas")}
    return {
        "rayVersion": metadata.version("ray"),
        "authOptions": {"mode": "token"},
        # No reader and no actor lands on the head and starves the driver.
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": {"spec": pod(text, head)},
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                **number,
                "rayStartParams": {},
                "template": {"spec": pod(text, worker, has_job_file=False)},
            }
        ],
    }
