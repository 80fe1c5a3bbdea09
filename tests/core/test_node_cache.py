"""An artefact of the node cache is whole or absent, and a suspended process blocks nobody."""

from __future__ import annotations

import fcntl
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import node_cache, private_files
from pipeline.core.node_cache import (
    cached_folder,
    claim_once_per_node,
    key_of,
    versions_of,
)
from pipeline.core.private_files import cache_folder


def test_what_could_not_be_written_whole_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[str] = []

    def half(folder: Path) -> None:
        calls.append("half")
        (folder / "config").write_text("{}")
        raise OSError("no space left")

    def whole(folder: Path) -> None:
        calls.append("whole")
        assert not [*folder.iterdir()]
        for name in ("config", "weights"):
            (folder / name).write_text(name)

    with pytest.raises(OSError, match="no space left"):
        cached_folder("a-model", half)
    before = [path for path in cache_folder().iterdir() if path.is_dir()]
    assert [path.name for path in before if path.name[:1] == "." or path.name == "a-model"] == []
    for _ in range(2):
        folder = cached_folder("a-model", whole)
        names = {path.name for path in folder.iterdir()}
        assert names - {"checksums.json"} == {"config", "weights"}
    assert calls == ["half", "whole"]


def test_a_process_that_is_suspended_with_a_lock_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for module in (private_files, node_cache):
        monkeypatch.setattr(module, "WAIT_S", 0.0)
    users = private_files.first_of([cache_folder() / private_files.USERS])
    paths = cache_folder() / "a-model.lock", users / "a-model.lock"
    held = [private_files.locked(path, fcntl.LOCK_EX) for path in paths]
    calls: list[Path] = []
    for _ in range(2):
        folder = cached_folder("a-model", calls.append)
        assert folder == cache_folder() / "a-model"
        assert folder.exists()
    assert len(calls) == len(caplog.messages) == 1, "what is there needs no lock"
    assert caplog.messages[0].startswith(f"{paths[0]}: another process has held it")
    for descriptor in held:
        os.close(descriptor)


def test_what_another_process_has_made_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(private_files, "WAIT_S", 0.0)

    def late(folder: Path) -> None:
        cached_folder("a-model", lambda first: (first / "first").touch())
        (folder / "late").touch()

    names = {path.name for path in cached_folder("a-model", late).iterdir()}
    assert names == {"first", "checksums.json"}
    assert not [*cache_folder().glob(".*")]


def test_a_process_makes_a_damaged_artefact_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("pipeline.core.node_cache._CHUNK_BYTES", 8)
    calls: list[Path] = []

    def write(folder: Path) -> None:
        calls.append(folder)
        (folder / "sub").mkdir()
        for path, data in (("config", b"{}"), ("empty", b""), ("sub/weights", bytes(20))):
            (folder / path).write_bytes(data)

    def files() -> dict[str, bytes]:
        monkeypatch.setattr("pipeline.core.node_cache._checked", set())  # a new process
        folder = cached_folder("a-model", write)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in paths}

    good = files()
    assert (good, len(calls)) == (files(), 1)
    for number, name in enumerate(good):
        path = cache_folder() / "a-model" / name
        path.write_bytes(bytes([good[name][0] ^ 1]) + good[name][1:] if good[name] else b"?")
        assert (files(), len(calls)) == (good, 2 + 2 * number)
        path.unlink()
        assert (files(), len(calls)) == (good, 3 + 2 * number)
    assert not [*cache_folder().glob(".*")]


def test_one_process_of_a_node_has_a_claim_until_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    claim = "from pipeline.core import node_cache as n; print(n.claim_once_per_node({!r}))"

    def claims(name: str) -> str:
        command = [sys.executable, "-c", claim.format(name)]
        return subprocess.check_output(command, text=True).strip()

    assert [claims("a"), claims("a")] == ["True", "True"]
    assert claim_once_per_node("a")
    assert claim_once_per_node("a")  # its own
    assert [claims("a"), claims("b")] == ["False", "True"]


def test_a_module_of_a_distribution_of_another_name_counts_with_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As `onnxruntime-gpu` brings `onnxruntime`: otherwise an upgrade would change no key."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "fastmath.py").touch()
    keys = []
    for number in ("1.0", "1.1"):
        info = tmp_path / "fastmath_gpu-1.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: fastmath-gpu\nVersion: {number}\n"
        )
        (info / "top_level.txt").write_text("fastmath\n")
        importlib.invalidate_caches()
        assert versions_of(["fastmath"])["fastmath-gpu"] == number
        keys.append(key_of(["a model"], ["fastmath"]))
    assert len({*keys, key_of(["a model"], ["no_such_module"])}) == 3
