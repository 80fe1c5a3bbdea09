"""Old artefacts are removed from the node cache to make room, oldest first, never one in use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import node_cache
from pipeline.core.node_cache import (
    _CHECKSUMS,
    UNUSED_S,
    _checksums,
    cached_folder,
    claim_once_per_node,
    evict_for,
    use,
)
from pipeline.core.private_files import cache_folder

SIZE = 1000
USER = """
import sys
from pipeline.core.node_cache import cached_folder
cached_folder(sys.argv[1], lambda folder: None)
print("in use", flush=True)
sys.stdin.read()
"""

READER = """
import os
from pipeline.core.node_cache import cached_folder

print("ready", flush=True)
found = []
for number in range(40):
    folder = cached_folder(f"m-{number}", lambda folder: (folder / "weights").touch())
    os.utime(folder, (1, 1))  # as if it were found long ago
    found.append(folder)
    for each in found:
        os.stat(each / "weights")
"""


@pytest.fixture(autouse=True)
def _limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(node_cache, "MAX_BYTES", 3 * SIZE + 200)  # there are checksums, too


def write(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(SIZE))


def make(key: str, days: float) -> Path:
    """Make an artefact that a process which has ended used some days ago."""
    folder = cache_folder() / key
    folder.mkdir()
    write(folder)
    (folder / _CHECKSUMS).write_text(json.dumps(_checksums(folder)))
    used(folder, days)
    return folder


def used(folder: Path, days: float) -> None:
    at = time.time() - days * 86_400
    os.utime(folder, (at, at))


@pytest.fixture
def user() -> Iterator[subprocess.Popen[str]]:
    """A process that uses `m-9`, and has done so for long."""
    command = [sys.executable, "-c", USER, "m-9"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in use\n"
        write(cache_folder() / "m-9")
        used(cache_folder() / "m-9", 9)
        yield process
        process.kill()


def names() -> set[str]:
    folders = {path.name for path in cache_folder().iterdir() if path.is_dir()}
    return folders - {"users"}


def test_the_oldest_go_until_there_is_room() -> None:
    for days in (6, 9, 7, 8):
        make(f"m-{days}", days)
    assert evict_for() == ["m-9"]
    assert evict_for(2 * SIZE) == ["m-8", "m-7"]
    assert names() == {"m-6"}


def test_what_fits_stays_however_old_it_is() -> None:
    for days in (100, 200, 300):
        make(f"m-{days}", days)
    assert evict_for() == []


def test_what_was_used_lately_stays_however_large_it_is() -> None:
    for days in (1, 2, 3, 4, 4.9):
        make(f"m-{days}", days)
    assert evict_for(100 * SIZE) == []


def test_artefacts_of_all_kinds_go_and_nothing_else() -> None:
    kinds = ("model-1", "int8-1", "tokenizer-1", "0a1b2c")
    for age, key in enumerate(kinds):
        make(key, 9 - age)
    assert claim_once_per_node("work")
    assert evict_for(100 * SIZE) == list(kinds)
    assert names() == {"claims"}
    assert {path.name for path in (cache_folder() / "claims").iterdir()} == {"work"}


def write_large(folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(1 << 20))


def test_an_artefact_that_is_made_makes_room_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_cache, "MAX_BYTES", 1 << 20)
    make("m-9", 9)
    cached_folder("small", write)
    assert names() == {"m-9", "small"}
    cached_folder("large", write_large)
    assert names() == {"small", "large"}


def test_what_a_process_uses_stays_until_it_ends(user: subprocess.Popen[str]) -> None:
    for days in (8, 7, 6):
        make(f"m-{days}", days)
    assert evict_for(SIZE) == ["m-8", "m-7"]
    user.kill()
    user.wait()
    assert evict_for(2 * SIZE) == ["m-9"]
    assert names() == {"m-6"}


def test_what_this_process_uses_stays_and_was_used_now() -> None:
    for days in (9, 8, 7, 6):
        make(f"m-{days}", days)
    folder = cached_folder("m-9", write)
    assert folder.stat().st_mtime > time.time() - UNUSED_S
    used(folder, 9)
    assert evict_for(100 * SIZE) == ["m-8", "m-7", "m-6"]
    assert names() == {"m-9"}


def test_what_a_process_is_about_to_make_stays() -> None:
    use("m-9")
    make("m-9", 9)
    assert evict_for(100 * SIZE) == []


def test_nothing_goes_that_was_found() -> None:
    for number in range(40):
        make(f"m-{number}", 9 + number / 1000)  # the last ones go first
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        while process.poll() is None:
            evict_for(100 * SIZE)
    assert process.returncode == 0


def test_what_went_is_made_again() -> None:
    make("m-9", 9)
    assert evict_for(100 * SIZE) == ["m-9"]
    assert (cached_folder("m-9", write) / "weights").stat().st_size == SIZE


def test_no_file_stays_of_a_key_that_no_process_uses_and_that_has_no_artefact() -> None:
    use("m-1")
    make("m-9", 9)
    (cache_folder() / "users" / "m-2.lock").touch()
    assert evict_for(100 * SIZE) == ["m-9"]
    assert [path.name for path in (cache_folder() / "users").iterdir()] == ["m-1.lock"]


def test_what_a_killed_process_left_unfinished_goes() -> None:
    folder = make(".0123", 0)
    evict_for()
    assert folder.exists()
    used(folder, UNUSED_S / 86_400 + 0.001)
    evict_for()
    assert not folder.exists()


def test_no_locks_are_left_behind() -> None:
    for number in range(3):
        cached_folder(f"m-{number}", write)
    assert [lock.name for lock in cache_folder().glob("*.lock")] == []
