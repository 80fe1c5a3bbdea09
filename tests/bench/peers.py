"""What the measurements compare with: `peers.py SYSTEM INPUTS MODEL WEIGHTS ...`.

It prints one JSON line: `rows`, and `work_s`, the seconds of the work without loading. Peers over
photos decode the same files, resize the shorter side, cut the centre out, normalise and run the
same weights; those over texts embed the column `text` with the same model directory.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys

FILES = {
    **dict.fromkeys(("loader", "ray", "daft", "spark"), "peers_photos"),
    **dict.fromkeys(("st-1", "st", "st-pool", "ray-text", "daft-text"), "peers_texts"),
    "limit": "limit",
}
_PACKAGES = {"daft": "daft", "daft-text": "daft", "spark": "pyspark"}


def missing(system: str) -> str:
    """Say what a system needs that is not here, and how to get it; '' where nothing is missing."""
    package = _PACKAGES.get(system, "")
    if package and importlib.util.find_spec(package) is None:
        return f"no {package}: `make bench` installs it"
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
    rows, work_s = function(*arguments)
    print(json.dumps({"rows": rows, "work_s": work_s}), flush=True)


if __name__ == "__main__":
    main()
