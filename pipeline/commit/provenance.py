"""Say with what predictions were made: in the metadata of every part, in manifests and reports."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version

from pipeline.commit.staging import META_PREFIX
from pipeline.planning.plan import Plan

_PACKAGES = ("batch-inference-pipeline", "ray", "torch", "torchvision", "pyarrow", "pillow")


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide predictions."""
    return {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}}


def file_metadata(
    plan: Plan, run_id: str, devices: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Return what every part's Parquet metadata says of how it was made.

    Args:
        plan: The plan.
        run_id: Of the run that writes.
        devices: Device -> rows of all parts that it predicted; staged parts count their own.
    """
    model = plan.model
    return {
        f"{META_PREFIX}run_id": run_id,
        f"{META_PREFIX}fingerprint": plan.fingerprint,
        f"{META_PREFIX}model": str(model["name"]),
        f"{META_PREFIX}weights_sha256": str(model["weights_sha256"]),
        f"{META_PREFIX}precision": str(model["precision"]),
        f"{META_PREFIX}runtime": str(model["runtime"]),
        f"{META_PREFIX}versions": json.dumps(package_versions()),
        **({f"{META_PREFIX}devices": json.dumps(devices)} if devices else {}),
    }
