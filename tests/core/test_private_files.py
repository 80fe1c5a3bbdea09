"""Files that another user could have made are neither trusted, opened nor written to."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.core.errors import InfraError
from pipeline.core.node_cache import cached_folder, claim_once_per_node
from pipeline.core.private_files import cache_folder, first_of, open_file, opened
from pipeline.execution.embedded import ray_folder
from pipeline.execution.embedded.ray_folder import RayFolder, weakness
from pipeline.execution.environment import token_file
from pipeline.execution.isolation.crash_marks import CrashMarks, Earlier
from pipeline.execution.tasks import crash_marks_in
from pipeline.operations.machine_checks import _disk_of_ray
from pipeline.process.terminal import native_errors_to

OTHER_USER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")


def as_other_user(act: Callable[[], object], user: int = OTHER_USER) -> str:
    """Do something as another user; return the error's name, or ours whole, '' if it worked."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setgroups([])
        os.setgid(OTHER_USER)
        os.setuid(user)
        try:
            act()
        except OSError as error:
            os.write(writing, type(error).__name__.encode())
        except InfraError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as file:
        return file.read()


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where Ray's folder is made: as /tmp is, for everybody, and not below a private folder."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def test_a_folder_is_made_private_and_one_that_others_can_write_is_refused(tmp_path: Path):
    with opened(tmp_path / "a" / "b") as folder:
        assert stat.S_IMODE(os.fstat(folder).st_mode) == 0o700
    (tmp_path / "a" / "b").chmod(0o770)
    with pytest.raises(InfraError, match="not writable by others"), opened(tmp_path / "a" / "b"):
        pass


@pytest.mark.parametrize("to", ["folder", "file", "nowhere"])
def test_a_link_or_a_file_is_no_folder(to: str, tmp_path: Path):
    (tmp_path / "folder").mkdir(mode=0o700)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / to)
    for name in ("link", "file"):
        with pytest.raises(InfraError, match="no link"), opened(tmp_path / name):
            pass


@needs_root
def test_another_users_folder_is_refused_and_the_next_one_taken(tmp_path: Path):
    taken, free = tmp_path / "taken", tmp_path / "own"
    taken.mkdir(mode=0o700)
    os.chown(taken, OTHER_USER, OTHER_USER)
    assert first_of([taken, free]) == free
    with pytest.raises(InfraError, match="taken: must be this user's own"):
        first_of([taken])


@needs_root
def test_a_user_without_a_home_folder_hears_what_to_set(monkeypatch: pytest.MonkeyPatch):
    for name in ("HOME", "XDG_CACHE_HOME", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    wanted = "user 54321 has no home folder: set HOME to a folder that this user may write to"
    for act in (cache_folder, lambda: token_file({})):
        assert as_other_user(act, 54_321) == wanted
    monkeypatch.setenv("HOME", "/")
    message = as_other_user(cache_folder, 54_321)
    assert message.startswith("/.cache/batch-inference-pipeline: must be a folder")
    assert message.endswith("Permission denied; set XDG_CACHE_HOME, or HOME, to another folder")


def test_no_link_is_followed_to_a_file_and_no_second_name_is_taken(tmp_path: Path):
    (tmp_path / "target").touch()
    with opened(tmp_path / "own") as folder:
        (tmp_path / "own" / "link").symlink_to(tmp_path / "target")
        (tmp_path / "own" / "hard").hardlink_to(tmp_path / "target")
        with pytest.raises(OSError, match="symbolic link"):
            open_file(folder, "link", os.O_WRONLY)
        with pytest.raises(InfraError, match="with one name"):
            open_file(folder, "hard", os.O_WRONLY)


def test_marks_in_a_folder_that_others_can_write_are_not_believed(tmp_path: Path):
    marks = CrashMarks(tmp_path / "marks")
    with marks.attempt("slice") as earlier:
        assert earlier == Earlier()
    (tmp_path / "marks" / "slice").write_text(13 * "{}\n")
    (tmp_path / "marks").chmod(0o777)
    with pytest.raises(InfraError, match="not writable by others"), marks.attempt("slice"):
        pass


def test_a_mark_that_is_a_link_is_not_believed(tmp_path: Path):
    (tmp_path / "planted").write_text(13 * "{}\n")
    with opened(tmp_path / "marks"):
        (tmp_path / "marks" / "slice").symlink_to(tmp_path / "planted")
    with pytest.raises(OSError, match="symbolic link"):  # noqa: SIM117
        with CrashMarks(tmp_path / "marks").attempt("slice"):
            pass
    assert (tmp_path / "planted").read_text() == 13 * "{}\n"


@needs_root
def test_marks_of_another_user_are_not_believed_whose_ever_folder_took_the_name(tmp_path: Path):
    """As on a cluster that is not ours, whose session folder every user can write to."""
    session, system = tmp_path / "ray" / "session", tmp_path / "tmp"
    for folder, mode in ((session, 0o777), (system, 0o1777)):
        folder.mkdir(parents=True)
        folder.chmod(mode)
    planted = session / f"pipeline-attempts-{os.geteuid()}" / "a-run"
    planted.mkdir(parents=True)
    (planted / "slice").write_text(13 * "{}\n")
    for path in (planted.parent, planted, planted / "slice"):
        os.chown(path, OTHER_USER, OTHER_USER)
    with crash_marks_in((session, system), "a-run").attempt("slice") as earlier:
        assert earlier == Earlier()
    assert stat.S_IMODE((system / planted.parent.name).stat().st_mode) == 0o700


def test_marks_of_runs_that_ended_long_ago_are_removed(tmp_path: Path):
    runs = [crash_marks_in([tmp_path], name) for name in ("old", "other", "own")]
    for run in runs:
        run.mark_poison("slice")
    os.utime(runs[0].folder, (0, 0))
    runs[2].forget_old_runs()
    assert [run.folder.exists() for run in runs] == [False, True, True]


@pytest.mark.parametrize("umask", [0, 0o077])
def test_rays_folder_is_private_whatever_the_umask(base: Path, umask: int):
    before = os.umask(umask)
    try:
        folder = RayFolder()
    finally:
        os.umask(before)
    (private,) = base.iterdir()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert folder.path.parent == private
    folder.path.chmod(0o777)  # as Ray does with whatever it is given
    (folder.path / "session_1" / "sockets").mkdir(parents=True)
    if os.geteuid() == 0:
        assert as_other_user(lambda: list(folder.path.iterdir())) == "PermissionError"
        assert as_other_user(lambda: (folder.path / "planted").touch()) == "PermissionError"
        assert as_other_user(lambda: private.rename(base / "away")) == "PermissionError"
    folder.end(keep_logs=False)
    assert list(base.iterdir()) == []


def test_the_logs_of_a_run_that_failed_stay_for_a_day_and_no_other_runs_folder_is_touched(
    base: Path,
):
    failed, running = RayFolder(), RayFolder()
    for name in ("logs", "sockets", "spilled"):
        (failed.path / "session_2" / name).mkdir(parents=True)
    failed.end(keep_logs=True)
    assert [path.name for path in failed.path.glob("session_2/*")] == ["logs"]
    for folder in base.iterdir():
        os.utime(folder, (0, 0))
    later = RayFolder()
    assert sorted(base.iterdir()) == sorted([running.path.parent, later.path.parent])


@needs_root
def test_what_another_user_made_to_look_like_ours_is_not_swept_away(base: Path, tmp_path: Path):
    (tmp_path / "precious").touch()
    as_other_user(lambda: (base / "pl-ray-planted1").symlink_to(tmp_path))
    as_other_user(lambda: (base / "pl-ray-planted2").mkdir())
    os.utime(base / "pl-ray-planted2", (0, 0))
    RayFolder().end(keep_logs=False)
    assert (tmp_path / "precious").exists()
    assert (base / "pl-ray-planted2").exists()


@pytest.mark.parametrize("length", [1, 30, 90, 200])
def test_the_paths_of_rays_sockets_are_short_enough_wherever_its_files_lie(
    length: int, base: Path, monkeypatch: pytest.MonkeyPatch
):
    named = base / ("x" * length)
    monkeypatch.setenv("RAY_TMPDIR", str(named))
    folder = RayFolder()
    (folder.path / "here").touch()
    assert len(list(named.glob("pl-ray-*/r/here"))) == 1, "the files lie where they are to lie"
    socket = folder.path / f"session_2026-11-24_00-00-00_000000_{os.getpid()}/sockets/plasma_store"
    assert len(os.fsencode(socket)) <= 107
    assert stat.S_IMODE(folder.path.parent.stat().st_mode) == 0o700
    folder.end(keep_logs=False)
    assert list(named.iterdir()) == []
    assert not folder.path.parent.exists()


def test_the_short_link_of_a_killed_run_is_swept_away_and_no_others(
    base: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_folder, "_SYSTEM", str(base))
    monkeypatch.setenv("RAY_TMPDIR", str(base / ("x" * 90)))
    killed, running = RayFolder(), RayFolder()
    os.close(killed._lock)
    links = [created.path.parent for created in (killed, running)]
    for folder in [*links, *killed.folders, *running.folders]:
        os.utime(folder, (0, 0))
    RayFolder().end(keep_logs=False)
    assert [link.exists() for link in links] == [False, True]
    running.end(keep_logs=False)


def test_a_place_that_others_could_exchange_the_folder_in_is_said(base: Path):
    assert weakness(base) is None
    base.chmod(0o777)
    assert f"chmod +t {base}" in str(weakness(base))
    assert (_disk_of_ray().status, _disk_of_ray().found) == ("warn", weakness(base))


def test_a_place_that_cannot_be_written_is_one_line_and_infrastructure(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/none")
    with pytest.raises(InfraError, match=r"/proc/none: no folder for Ray.* set RAY_TMPDIR"):
        RayFolder()


def test_what_rays_core_says_is_written_through_no_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, planted = tmp_path / "target", tmp_path / "driver-native.err"
    planted.symlink_to(target)
    with open(os.dup(2), "w") as stderr, monkeypatch.context() as here:
        here.setattr("sys.stderr", stderr)
        with native_errors_to(planted):
            os.write(2, b"from the core\n")
        with native_errors_to(tmp_path / "fresh"):
            os.write(2, b"from the core\n")
    assert not target.exists()
    assert (tmp_path / "fresh").read_text() == "from the core\n"
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o600


def test_the_cache_of_models_is_taken_from_no_folder_that_others_can_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert claim_once_per_node("a")
    cache = tmp_path / "batch-inference-pipeline"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (cache, cache / "claims")} == {0o700}
    (cache / "claims").chmod(0o777)
    with pytest.raises(InfraError, match="claims: must be this user's own"):
        claim_once_per_node("b")
    cache.chmod(0o777)
    with pytest.raises(InfraError, match="must be this user's own"):
        cached_folder("key", lambda folder: None)


@needs_root
def test_the_cache_may_be_a_link_of_this_user_and_of_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "large-disk").mkdir(mode=0o700)
    link = tmp_path / "batch-inference-pipeline"
    link.symlink_to(tmp_path / "large-disk")
    assert claim_once_per_node("a")
    os.chown(link, OTHER_USER, OTHER_USER, follow_symlinks=False)
    with pytest.raises(InfraError, match="no link"):
        claim_once_per_node("b")
