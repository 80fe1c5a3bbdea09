"""Test that a hostile model directory is refused in one line and bounded memory, and runs nothing.

`make long` also gives some to the real command, with an address where there is no Ray: a directory
that is not refused fails there.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.inputs.hostile import BY_COMMAND, BY_LIBRARY, HOSTILE, LONG, ONNX, TOKENIZER
from support.models import onnx_files
from support.models.audio_snapshots import make_listener
from support.models.language_models import make_writer
from support.models.snapshots import make_snapshot, make_timm
from support.models.tiny_tokenizer import make_tokenizer
from support.runs.cli import environment, write_job
from support.runs.jobs import SOURCES, job_of
from support.runs.selection import quick_cases
from support.servers.commandserver import OF_CHECKS, CommandServer

from pipeline.core.errors import JobError
from pipeline.models.directories import opening
from pipeline.models.directories.snapshot import open_directory
from pipeline.models.resolving.resolve import resolve_model
from pipeline.process.confined import confined

pytestmark = pytest.mark.early

MAX_CPU_S = 20
MAX_MORE_BYTES = 512 << 20
"""Memory of a command, and of the process that reads a directory for it, beyond their imports; the
longest header of safetensors that is parsed takes most."""
REFUSED, NO_RAY = 2, 7
GIVEN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "writer": ("text", {"task": "generate", "prompt": "Say: {text}"}),
    "timm": ("image", {}),
    "image": ("image", {}),
    "audio": ("audio", {}),
}
"""A base -> the input of its rows, and more of the job's model."""


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
        "writer": make_writer(folder / "writer"),
        "timm": make_timm(folder / "timm", "test_resnet", 3),
        "image": make_snapshot(folder / "image", "vit", "image", num_labels=3),
        "audio": make_listener(folder / "audio", "ast"),
    }


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with CommandServer(environment(cache), OF_CHECKS, is_limited=True) as forked:
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


def changed(name: str, bases: dict[str, Path], folder: Path) -> tuple[Path, Path, str]:
    """A hostile model, the marker that nothing may write, and what the one line must say."""
    case, model, marker = HOSTILE[name], folder / "model", folder / "marker"
    shutil.copytree(bases[case.base], model)
    case.change(model, marker)
    return (model / ONNX if case.base == "onnx" else model), marker, case.says


def peak_bytes() -> int:
    """What this process held at most since its peak was forgotten."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


@pytest.mark.parametrize("name", quick_cases(zip(HOSTILE), lambda name: name not in LONG))
def test_a_hostile_directory_is_refused_in_one_line_before_a_run(
    name: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for limit, most in (("cpu_s", MAX_CPU_S), ("memory_bytes", MAX_MORE_BYTES)):
        monkeypatch.setitem(opening.LIMITS, limit, most)
    model, marker, says = changed(name, bases, tmp_path)
    input_name, more = GIVEN.get(HOSTILE[name].base, ("text", {}))
    job = job_of({"path": str(model), **more}, SOURCES[input_name])
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, message = peak_bytes(), ""
    try:
        resolve_model(job)
    except JobError as error:
        message = str(error)
    more_bytes = peak_bytes() - before
    assert more_bytes < MAX_MORE_BYTES, f"{more_bytes / 2**20:.0f} MiB"
    assert not marker.exists()
    assert "root:" not in message, "it shows a line of /etc/passwd"
    assert says in message
    assert bool(says) == bool(message), message
    assert "\n" not in message
    names = ("model.path", "transform: ", str(model))
    assert not message or any(name in message for name in names), message


def attempts_over(model: Path, base: str) -> list[str]:
    """What the process that reads a directory was refused, besides what its library needs."""
    path = open_directory(str(model))[1]
    wanted, _ = GIVEN.get(base, ("text", {}))
    imports = (*opening.OF_TRANSFORMERS, "timm", "sentence_transformers")
    refused: list[str] = confined(
        "hostile_child:attempts", str(path), wanted, reads=[path], imports=imports
    )
    return refused


@pytest.mark.parametrize("name", ["plain", "sentence", "onnx", "writer", "timm", "image", "audio"])
def test_a_good_directory_needs_nothing_that_is_refused(
    name: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert attempts_over(bases[name] / ONNX if name == "onnx" else bases[name], name) == []


@pytest.mark.parametrize("name", quick_cases(zip(BY_LIBRARY), lambda name: name not in LONG))
def test_the_library_does_not_try_to_run_read_or_fetch_more(
    name: str, bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, marker, _ = changed(name, bases, tmp_path)
    with contextlib.suppress(JobError):  # what is refused before it is copied is never read
        assert attempts_over(model, HOSTILE[name].base) == []
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_COMMAND)
def test_a_command_refuses_a_hostile_directory_in_one_line(
    name: str, bases: dict[str, Path], commands: CommandServer, texts: Path, tmp_path: Path
):
    model, marker, says = changed(name, bases, tmp_path)
    ended = commands.run("run", job_over(model, texts, tmp_path), "--address", "127.0.0.1:1")
    assert not marker.exists()
    assert ended.more_bytes < MAX_MORE_BYTES, f"{ended.more_bytes / 2**20:.0f} MiB"
    if not says:
        assert ended.code == NO_RAY, ended.stderr
        return
    assert ended.code == REFUSED, ended.stderr
    lines = [text for text in ended.stderr.splitlines() if " INFO " not in text]
    [line] = [text for text in lines if not text.startswith("report: ")]
    assert line.startswith("error: ")
    assert says in line
    assert len(line) < 600
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.parquet"))
