"""Run a system that measurements compare with: `peers.py SYSTEM INPUTS MODEL WEIGHTS ...`.

It prints one JSON line: `rows`, and `work_s`, the seconds of the work without loading. Peers over
photos decode the same files, resize the shorter side, cut the centre out, normalise and run the
same weights; those over texts embed the column `text` with the same model directory.
"""

from __future__ import annotations

import importlib
import json
import sys

FILES = {
    **dict.fromkeys(("loader", "ray", "daft", "spark", "limit"), "peers_photos"),
    **dict.fromkeys(("st-1", "st", "st-pool", "ray-text", "daft-text"), "peers_texts"),
}


def main() -> None:
    system, *arguments = sys.argv[1:]
    function = getattr(importlib.import_module(FILES[system]), system.replace("-", "_"))
    rows, work_s = function(*arguments)
    print(json.dumps({"rows": rows, "work_s": work_s}), flush=True)


if __name__ == "__main__":
    main()
