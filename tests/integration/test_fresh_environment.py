"""Documents are true: the three lines of the README predict from a wheel, elsewhere."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.inputs.photos import build_images
from support.runs.checkout import ROOT
from support.runs.documents import DOCUMENTS, MARKED

NUM_ROWS = 24
[PREDICT] = [
    text for mark, _, text in MARKED.findall(DOCUMENTS["README.md"]) if mark == "file: labels.py"
]
AGAIN = "import pipeline, sys; assert sys.argv[1] in pipeline.__file__\n" + PREDICT
DIFF = "print(pipeline.diff('labels'))\n"
CHANGE = """\
import pathlib, shutil
some = next(pathlib.Path("photos").rglob("*.jpg"))
shutil.copy(some, some.with_name("added.jpg"))
"""
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with a wheel of this package; what it needs is this one's."""
    folder = tmp_path_factory.mktemp("fresh")
    source = folder / "source"
    shutil.copytree(ROOT / "pipeline", source / "pipeline")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    how = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *how, "--wheel-dir", folder, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    [site] = (folder / "env").glob("lib/python*/site-packages")
    [wheel] = folder.glob("*.whl")
    subprocess.run([*pip, "install", *how[:3], "--target", site, wheel], check=True)
    below = [path for path in sys.path if path.endswith("site-packages")]
    (site / "below.pth").write_text("\n".join(below))
    return folder / "env" / "bin" / "python"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with photos, and no trace of the repository in the environment."""
    for name in ("PYTHONPATH", "PIPELINE_ALLOW_IMPORT", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    build_images(tmp_path / "photos", NUM_ROWS, seed=5, num_bad=1)
    return tmp_path


def test_a_program_predicts_looks_and_compares(python: Path, outside: Path):
    for program in (AGAIN, CHANGE + AGAIN + DIFF):
        done = subprocess.run(
            [python, "-c", program, str(python.parents[1])],
            cwd=outside, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "published" in done.stdout
    assert "1 added" in done.stdout
