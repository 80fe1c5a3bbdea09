"""The folders directly below `sink.uri`, and what all partitions share in them.

`commit/layout.py` builds the paths of a partition on these names. They stand here because the job's
loader, the store and the runtimes need them, too. No other file spells a path of the output.
"""

from __future__ import annotations

PREDICTIONS, QUARANTINE, REPORTS, CONTROL = "predictions", "quarantine", "reports", "_control"
ICEBERG = "iceberg"
"""The metadata of an Iceberg table, beside the parts: it may have files of other writers, too."""
OUTPUT_FOLDERS = (PREDICTIONS, QUARANTINE, REPORTS, CONTROL, ICEBERG)
PROBES = f"{CONTROL}/.probe"
"""Where trial files lie for a moment: a killed run may leave one."""
CALIBRATED_MODELS = f"{CONTROL}/models"
MEASURED_PROFILES = f"{CONTROL}/profiles"


def calibrated_model(sha256: str) -> str:
    """Return the path of a calibrated model, which is named by its SHA-256."""
    return f"{CALIBRATED_MODELS}/{sha256}.onnx"


def measured_profile(key: str) -> str:
    """Return the path of what was measured of a model on one kind of machine."""
    return f"{MEASURED_PROFILES}/{key}.json"
