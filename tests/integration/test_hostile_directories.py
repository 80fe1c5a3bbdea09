"""Hostile model directories: one line that names the thing, before Ray starts, in bounded memory.

Each is run by the real command, with an address where there is no Ray: what gets that far ends in
another way.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.hostile import HOSTILE, LONG, ONNX, QUICK, TOKENIZER
from support.models import onnx_files
from support.models.snapshots import make_snapshot
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import environment, write_job
from support.servers.forkedcommands import OF_CHECKS, Ended, ForkedCommands

from pipeline.core.errors import JobError
from pipeline.job.reading.loader import read_job
from pipeline.models.resolving.resolve import resolve_model

pytestmark = pytest.mark.early

MAX_MORE_BYTES = 512 << 20
"""Memory of a command beyond its imports; the longest header of safetensors that is parsed takes
most."""
REFUSED, NO_RAY = 2, 7


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Good directories, of each kind."""
    folder = tmp_path_factory.mktemp("bases")
    (folder / "onnx").mkdir()
    onnx_files.save(onnx_files.text_model(), folder / "onnx" / ONNX)
    make_tokenizer().save(str(folder / "onnx" / TOKENIZER))
    return {
        "plain": make_snapshot(folder / "plain", "bert", "sequence", num_labels=3),
        "sentence": make_snapshot(folder / "sentence", "bert", pooling="mean", dense=16),
        "onnx": folder / "onnx",
    }


@pytest.fixture(scope="module")
def commands(
    bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ForkedCommands]:
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with ForkedCommands(environment(cache), OF_CHECKS, bases["plain"]) as forked:
        yield forked


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    pq.write_table(pa.table({"body": ["the cat sat", "a dog"]}), folder / "s.parquet")
    return folder


def job_over(model: Path, texts: Path, folder: Path) -> str:
    source = {"uri": str(texts), "format": "parquet", "text_column": "body"}
    return write_job(
        folder / "job.yaml",
        source,
        str(folder / "out"),
        model={"path": str(model)},
        transform=None,
        sink={"partition": None},
    )


def run(commands: ForkedCommands, model: Path, texts: Path, folder: Path) -> Ended:
    return commands.run("run", job_over(model, texts, folder), "--address", "127.0.0.1:1")


def marked(name: str, is_quick: bool) -> Any:
    return pytest.param(name, marks=[] if is_quick else [pytest.mark.slow])


@pytest.mark.parametrize("name", [marked(name, name not in LONG) for name in HOSTILE])
def test_it_is_refused_in_one_line_and_nothing_is_run_before_a_run_begins(
    name: str, bases: dict[str, Path], texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    case, folder, marker = HOSTILE[name], tmp_path / "model", tmp_path / "marker"
    shutil.copytree(bases[case.base], folder)
    case.change(folder, marker)
    model = folder / ONNX if case.base == "onnx" else folder
    message = ""
    try:
        resolve_model(read_job(job_over(model, texts, tmp_path), date=None))
    except JobError as error:
        message = str(error)
    assert not marker.exists()
    assert "root:" not in message, "it shows a line of /etc/passwd"
    assert case.says in message
    assert bool(case.says) == bool(message), message
    assert "\n" not in message
    assert not message or "model.path" in message or str(folder) in message, message


@pytest.mark.parametrize("name", [marked(name, name in QUICK) for name in HOSTILE])
def test_it_is_refused_in_one_line_and_nothing_is_run(
    name: str, bases: dict[str, Path], commands: ForkedCommands, texts: Path, tmp_path: Path
):
    case, folder, marker = HOSTILE[name], tmp_path / "model", tmp_path / "marker"
    shutil.copytree(bases[case.base], folder)
    case.change(folder, marker)
    model = folder / ONNX if case.base == "onnx" else folder
    ended = run(commands, model, texts, tmp_path)
    assert not marker.exists()
    assert ended.more_bytes < MAX_MORE_BYTES, f"{ended.more_bytes / 2**20:.0f} MiB"
    assert "root:" not in ended.stderr, "it shows a line of /etc/passwd"
    if not case.says:
        assert ended.code == NO_RAY, ended.stderr
        return
    assert ended.code == REFUSED, ended.stderr
    lines = [text for text in ended.stderr.splitlines() if " INFO " not in text]
    [line] = [text for text in lines if not text.startswith("report: ")]
    assert line.startswith("error: ")
    assert "model.path" in line or str(folder) in line, line
    assert case.says in line
    assert len(line) < 600
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))
