"""What throughput.py and text.py compare with: `peers.py SYSTEM INPUTS MODEL WEIGHTS ...`.

Each system has a file of its own with one function. It prints one JSON line: `rows`, and `steady`,
the rows/s once it was running (null where there were too few batches to tell). Those over photos
decode the same files, resize the shorter side, cut the centre out, normalise and run the same
weights; those over texts embed the column `text` with the same model directory.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys

FILES = {
    "loader": "peer_loader",
    "ray": "peer_ray",
    "daft": "peer_daft",
    "spark": "peer_spark",
    "limit": "limit",
    "st-1": "peer_st",
    "st": "peer_st",
    "st-pool": "peer_st",
    "ray-text": "peer_ray_text",
    "daft-text": "peer_daft_text",
}
_PACKAGES = {"daft": "daft", "daft-text": "daft", "spark": "pyspark"}
INSTALL = "`make bench` installs it"


def missing(system: str) -> str:
    """Say what a system needs that is not here, and how to get it; '' where nothing is missing."""
    package = _PACKAGES.get(system, "")
    if package and importlib.util.find_spec(package) is None:
        return f"no {package}: {INSTALL}"
    if system == "spark" and not (os.environ.get("JAVA_HOME") or shutil.which("java")):
        return "no java: install a Java runtime, 17 or newer"
    return ""


def main() -> None:
    system, *arguments = sys.argv[1:]
    if missing(system):
        sys.exit(missing(system))
    if arguments == ["--missing"]:
        return
    function = getattr(importlib.import_module(FILES[system]), system.replace("-", "_"))
    found = function(*arguments)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
