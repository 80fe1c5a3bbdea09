"""Ray's token is made private before Ray makes it, and is never changed."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from ray import _raylet

from pipeline.core.errors import JobError
from pipeline.execution.caller import restore_process_state
from pipeline.execution.cluster.connect import connect
from pipeline.execution.environment import (
    about_home,
    make_private_token,
    refused_token,
    send_token,
    sends_token,
    set_embedded,
    token_file,
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_token_is_for_its_owner_only_and_is_made_once(home: Path):
    make_private_token()
    path = home / ".ray" / "auth_token"
    first = path.read_text()
    assert (len(first), mode(path)) == (64, 0o600)
    make_private_token()
    assert path.read_text() == first


def test_one_that_is_there_becomes_private_and_keeps_its_value(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    path = home / "token"
    path.write_text("the-token")
    path.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    make_private_token()
    assert (path.read_text(), mode(path)) == ("the-token", 0o600)


@pytest.mark.parametrize("variables", [{"RAY_AUTH_TOKEN": "x" * 64}, {"RAY_AUTH_MODE": "disabled"}])
def test_who_brings_a_token_or_wants_none_gets_none(
    variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    make_private_token()
    assert not (home / ".ray").exists()


@pytest.mark.skipif(not hasattr(_raylet, "AuthenticationMode"), reason="this Ray knows no tokens")
@pytest.mark.parametrize(
    ("before", "after"), [(None, "token"), ("", "token"), ("token", "token"), ("disabled", None)]
)
def test_an_embedded_ray_asks_for_a_token_unless_nobody_wants_one(
    before: str | None, after: str | None, monkeypatch: pytest.MonkeyPatch
):
    if before is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", before)
    with restore_process_state():
        set_embedded()
        assert os.environ["RAY_AUTH_MODE"] == (after or before)
        if after:  # Ray was imported before
            assert _raylet.get_authentication_mode() == _raylet.AuthenticationMode.TOKEN
    _raylet.Config.initialize("")


def test_a_token_in_the_home_folder_is_sent_if_tokens_are_on(home: Path):
    make_private_token()
    assert [sends_token(env) for env in ({}, {"RAY_AUTH_MODE": "token"})] == [False, True]
    named = {"RAY_AUTH_TOKEN": "x"}
    assert [sends_token({**named, "RAY_AUTH_MODE": mode}) for mode in ("", "disabled")] == [
        True,
        False,
    ]


def test_a_home_that_cannot_be_written_is_left_to_ray(home: Path, monkeypatch: pytest.MonkeyPatch):
    (home / "file").write_text("")
    monkeypatch.setenv("HOME", str(home / "file"))
    make_private_token()
    assert not token_file({}).exists()
    with pytest.raises(NotADirectoryError) as raised:
        token_file({}).parent.mkdir()  # as Ray does
    assert about_home(raised.value).endswith("set HOME to a folder that this user may write to")
    assert not about_home(FileNotFoundError(2, "no such file", "/tmp/ray"))


def test_only_a_token_of_the_environment_is_sent_to_a_cluster(
    home: Path, monkeypatch: pytest.MonkeyPatch
):
    make_private_token()
    assert not send_token()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x" * 64)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert not send_token(), "whoever said so means it"
    monkeypatch.setenv("RAY_AUTH_MODE", "")
    monkeypatch.delenv("RAY_AUTH_MODE")
    assert send_token()


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "wants a token: set RAY_AUTH_TOKEN to that of its head (and RAY_AUTH_MODE=tok"),
        ({"RAY_AUTH_TOKEN": "x" * 64}, "wants another token than that of RAY_AUTH_TOKEN, of"),
        ({"RAY_AUTH_MODE": "token"}, "or in ~/.ray/auth_token: set RAY_AUTH_TOKEN to that"),
    ],
)
def test_a_refused_token_is_never_shown(
    variables: dict[str, str], words: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    (home / ".ray").mkdir()
    (home / ".ray" / "auth_token").write_text("x" * 64)
    send_token()
    message = refused_token("Ray at HOST:6411")
    assert message.startswith("Ray at HOST:6411: the cluster wants a")
    assert words in message
    assert "xxxx" not in message


@pytest.mark.parametrize("what", ["CLOUDPICKLE_TENSOR_METADATA", "PICKLE_OBJECT_SCALAR", "X"])
def test_an_environment_that_lets_files_run_code_is_refused(
    what: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(f"RAY_DATA_AUTOLOAD_{what}", "1")
    with pytest.raises(JobError, match=f"RAY_DATA_AUTOLOAD_{what}=1"), connect(None):
        pytest.fail("it started")
