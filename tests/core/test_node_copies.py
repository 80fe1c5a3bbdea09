"""Old copies in the node cache go to make room, oldest first, and never one that is in use."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.core import node_copies
from pipeline.core.node_cache import cache_folder, kept
from pipeline.core.node_copies import UNUSED_S, lease, make_room

SIZE = 1000
USER = """
import sys
from pipeline.core.node_copies import lease
lease(sys.argv[1])
print("in use", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def _limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(node_copies, "MAX_BYTES", 3 * SIZE)


def make(key: str, days: float) -> Path:
    """Make a copy that a process which has ended used some days ago."""

    def write(folder: Path) -> None:
        (folder / "weights").write_bytes(bytes(SIZE))

    folder = kept(key, write)
    used = folder.with_name(f"{key}.used")
    used.touch()
    at = time.time() - days * 86_400
    os.utime(used, (at, at))
    return folder


@pytest.fixture
def user() -> Iterator[subprocess.Popen[str]]:
    """A process that uses `m-9`."""
    command = [sys.executable, "-c", USER, "m-9"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in use\n"
        yield process
        process.kill()


def names() -> set[str]:
    return {path.name for path in cache_folder().iterdir() if path.is_dir()}


def test_the_oldest_go_until_there_is_room() -> None:
    for days in (6, 9, 7, 8):
        make(f"m-{days}", days)
    assert make_room("m-", 0) == ["m-9"]
    assert make_room("m-", 2 * SIZE) == ["m-8", "m-7"]
    assert names() == {"m-6"}


def test_what_fits_stays_however_old_it_is() -> None:
    for days in (100, 200, 300):
        make(f"m-{days}", days)
    assert make_room("m-", 0) == []


def test_what_was_used_lately_stays_however_large_it_is() -> None:
    for days in (1, 2, 3, 4, 4.9):
        make(f"m-{days}", days)
    assert make_room("m-", 100 * SIZE) == []


def test_other_things_in_the_cache_stay() -> None:
    for days in (6, 7, 8, 9):
        make(f"other-{days}", days)
    assert make_room("m-", 100 * SIZE) == []


def test_what_a_process_uses_stays_until_it_ends(user: subprocess.Popen[str]) -> None:
    for days in (9, 8, 7, 6):
        make(f"m-{days}", days)
    assert make_room("m-", SIZE) == ["m-8", "m-7"]
    user.kill()
    user.wait()
    assert make_room("m-", 2 * SIZE) == ["m-9"]
    assert names() == {"m-6"}


def test_what_this_process_uses_stays_and_was_used_now() -> None:
    for days in (9, 8, 7, 6):
        make(f"m-{days}", days)
    lease("m-9")
    at = (cache_folder() / "m-9.used").stat().st_mtime
    assert at > time.time() - UNUSED_S
    assert make_room("m-", 100 * SIZE) == ["m-8", "m-7", "m-6"]
    assert names() == {"m-9"}


def test_a_copy_that_went_is_made_again() -> None:
    make("m-9", 9)
    assert make_room("m-", 100 * SIZE) == ["m-9"]
    lease("m-9")
    assert (make("m-9", 0) / "weights").stat().st_size == SIZE


def test_copies_of_earlier_versions_count_from_when_they_were_made() -> None:
    for key, days in (("m-old", 9.0), ("m-new", 1.0)):
        folder = make(key, 0)
        folder.with_name(f"{key}.used").unlink()
        at = time.time() - days * 86_400
        os.utime(folder, (at, at))
    assert make_room("m-", 100 * SIZE) == ["m-old"]


def test_what_a_killed_process_left_unfinished_goes() -> None:
    folder = cache_folder() / ".0123"
    folder.mkdir()
    (folder / "weights").write_bytes(bytes(SIZE))
    make_room("m-", 0)
    assert folder.exists()
    at = time.time() - UNUSED_S - 60
    os.utime(folder, (at, at))
    make_room("m-", 0)
    assert not folder.exists()
