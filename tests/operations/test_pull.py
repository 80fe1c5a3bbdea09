"""`pipeline pull`: data only, at one commit, each file checked, over real sockets."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.models.audio_snapshots import make_listener
from support.models.language_models import ENDS, make_writer
from support.models.snapshots import make_snapshot, write_json
from support.runs.cli import Result, pipeline
from support.servers.hubserver import COMMIT, OTHER_COMMIT, TOKEN, HubServer
from support.servers.object_stores import S3Server

from pipeline.core import backoff
from pipeline.core.errors import InfraError, JobError
from pipeline.models.directories.files import ADAPTER, NAMES
from pipeline.models.directories.snapshot import open_directory
from pipeline.operations.pull import pull, read_repo

REPO, URI = "org/small", "hf://org/small"
LARGE = "model.safetensors"
DATA = {
    **dict.fromkeys(set(NAMES) - {ADAPTER}, b"{}"),
    LARGE: bytes(range(256)) * 5000,
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "modules.json": b"[]",
    "1_Pooling/config.json": b"{}",
    "2_Dense/model.safetensors": b"dense",
    "README.md": b"# A model",
    "LICENSE": b"free",
}
OTHERS = {
    "pytorch_model.bin": b"\x80\x02",
    "onnx/model.onnx": b"onnx",
    "modeling_own.py": b"raise SystemExit",
    ".gitattributes": b"",
    "vocab.txt": b"a",
    "LICENSE.pkl": b"\x80",
    "tokenizer_model.json.txt": b"",
    "xconfig.json": b"",
    "model.safetensors.bin": b"",
}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 0.01)
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer() as server:
        server.repos[REPO] = {**DATA, **OTHERS}
        server.large = {LARGE, "onnx/model.onnx"}
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def refusal(uri: str, folder: Path, *include: str, error_type: type[Exception] = JobError) -> str:
    with pytest.raises(error_type) as caught:
        pull(uri, str(folder), include=include)
    assert type(caught.value) in (error_type, *error_type.__subclasses__())
    assert "\n" not in str(caught.value)
    assert "pull.json" not in files(folder)
    return str(caught.value)


def test_only_data_files_are_copied(hub: HubServer, tmp_path: Path):
    pulled = pull(URI, str(tmp_path / "m"))
    there = files(tmp_path / "m")
    record = json.loads(there.pop("pull.json"))
    assert there == DATA
    assert pulled["left_out"] == (
        "9 files, 24 B: 2 .bin, 1 .gitattributes, 1 .json, 1 .onnx, 1 .pkl, 1 .py, 2 .txt"
    )
    assert (record["repository"], record["commit"]) == (REPO, COMMIT)
    assert record["files"] == pulled["files"]
    assert {f["name"]: (f["size_bytes"], f["sha256"]) for f in record["files"]} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in DATA.items()
    }
    lines = "".join(f"{f['name']} {f['sha256']}\n" for f in record["files"])
    assert record["sha256"] == pulled["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert set(hub.downloads) == set(DATA)


def test_the_same_commit_again_copies_nothing(hub: HubServer, tmp_path: Path):
    first = pull(URI, str(tmp_path))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    count = hub.downloads.total()
    for uri in (URI, f"{URI}@v1.0", f"{URI}@{COMMIT}"):
        again = pull(uri, str(tmp_path))
        assert (again["copied"], again["sha256"]) == (0, first["sha256"])
    assert hub.downloads.total() == count
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_missing_and_truncated_files_are_copied_again(hub: HubServer, tmp_path: Path):
    pull(URI, str(tmp_path))
    (tmp_path / "config.json").unlink()
    (tmp_path / LARGE).write_bytes(b"cut")
    assert pull(URI, str(tmp_path))["copied"] == 2
    assert {**files(tmp_path), "pull.json": b""} == {**DATA, "pull.json": b""}


def test_included_files_are_added_to_the_same_commit(hub: HubServer, tmp_path: Path):
    first = pull(URI, str(tmp_path), include=["*.json"])
    assert LARGE not in files(tmp_path)
    then = pull(URI, str(tmp_path), include=[LARGE, "onnx/*"])
    assert then["copied"] == 2
    names = {file["name"] for file in then["files"]}
    assert names == {file["name"] for file in first["files"]} | {LARGE, "onnx/model.onnx"}


def language_model(folder: Path) -> Path:
    """Write a directory whose rules of writing and chat template lie in files of their own."""
    rules = {"eos_token_id": [*ENDS], "repetition_penalty": 1.3, "suppress_tokens": [5]}
    write_json(make_writer(folder) / "generation_config.json", rules)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


@pytest.mark.parametrize(
    "make",
    [
        language_model,
        lambda folder: make_snapshot(folder, "bert", pooling="cls", dense=8, prompts={"q": "q: "}),
        lambda folder: make_snapshot(folder, "clip"),
        lambda folder: make_listener(folder, "whisper"),
    ],
    ids=["language model", "sentence-transformers", "clip", "audio"],
)
def test_all_files_that_the_reader_needs_are_copied(
    hub: HubServer, tmp_path: Path, make: Callable[[Path], Path]
):
    original = make(tmp_path / "original")
    hub.repos[REPO] = {**files(original), "modeling_own.py": b"", "optimizer.pt": b""}
    pull(URI, str(tmp_path / "pulled"))
    read = [open_directory(str(folder))[0] for folder in (original, tmp_path / "pulled")]
    assert read[0].sha256 == read[1].sha256


def test_vocabularies_are_copied_if_there_is_no_tokenizer_yet(hub: HubServer, tmp_path: Path):
    hub.repos[REPO] = {LARGE: b"", "vocab.txt": b"a", "spiece.model": b"b", "x.model": b""}
    assert pull(URI, str(tmp_path))["left_out"] == "1 file, 0 B: 1 .model"
    assert set(files(tmp_path)) == {LARGE, "vocab.txt", "spiece.model", "pull.json"}


def test_an_adapter_is_refused_before_anything_is_downloaded(hub: HubServer, tmp_path: Path):
    hub.repos[REPO][ADAPTER] = b"{}"
    assert f"{ADAPTER} is of an adapter (LoRA), which would not" in refusal(URI, tmp_path / "m")
    assert not hub.downloads
    pull(URI, str(tmp_path / "m"), include=[LARGE, "*r.json"])
    assert set(files(tmp_path / "m")) == {LARGE, "tokenizer.json", "pull.json"}


def test_without_the_hubs_library_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "needs the extra: pip install 'batch-inference-pipeline[pull]'" in refusal(URI, tmp_path)


def test_without_safetensors_onnx_files_are_taken(hub: HubServer, tmp_path: Path):
    hub.repos[REPO] = {"onnx/model.onnx": b"onnx", "config.json": b"{}"}
    pull(URI, str(tmp_path))
    assert set(files(tmp_path)) == {"onnx/model.onnx", "config.json", "pull.json"}


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (
            "pytorch_model.bin",
            "--include pytorch_model.bin: pytorch_model.bin is not allowed: only",
        ),
        ("*.py", "--include *.py: modeling_own.py is not allowed: only *.safetensors"),
        ("LICENSE.pkl", "LICENSE.pkl is not allowed"),
        ("missing.json", "--include missing.json: the repository has no such file"),
    ],
)
def test_a_file_that_is_not_allowed_is_refused_by_name(
    hub: HubServer, tmp_path: Path, pattern: str, words: str
):
    assert words in refusal(URI, tmp_path / "m", "config.json", pattern)
    assert not (tmp_path / "m").exists()
    assert not hub.downloads


def test_a_repository_without_plain_weights_is_refused(hub: HubServer, tmp_path: Path):
    hub.repos[REPO] = {"pytorch_model.bin": b"", "config.json": b"{}"}
    message = refusal(URI, tmp_path)
    assert "no *.safetensors and no *.onnx (it has pytorch_model.bin, config.json)" in message


@pytest.mark.parametrize("name", [LARGE, "config.json"])
def test_a_file_with_another_digest_is_refused(hub: HubServer, tmp_path: Path, name: str):
    data = DATA[name]
    hub.sent_instead[name] = bytes([data[0] ^ 1]) + data[1:]
    message = refusal(URI, tmp_path)
    assert f"{URI}: {name}: its digest is " in message
    assert not set(files(tmp_path)) & set(DATA), "none of the others, either"
    hub.sent_instead.clear()
    assert pull(URI, str(tmp_path))["copied"] == len(DATA)


@pytest.mark.parametrize("ignores_range", [False, True])
def test_an_interrupted_download_resumes(hub: HubServer, tmp_path: Path, ignores_range: bool):
    hub.ignores_range = ignores_range
    hub.cuts[LARGE] = [100_000]
    pull(URI, str(tmp_path))
    assert files(tmp_path)[LARGE] == DATA[LARGE]


def test_a_download_that_keeps_breaking_is_given_up(hub: HubServer, tmp_path: Path):
    hub.cuts[LARGE] = [70_000] * 20
    message = refusal(URI, tmp_path, error_type=InfraError)
    assert message.startswith(f"{URI}: the hub does not answer (")
    assert message.endswith("; run again to resume")
    assert not set(files(tmp_path)) & set(DATA)
    hub.cuts.clear()
    count = hub.downloads["config.json"]
    pull(URI, str(tmp_path))
    assert set(files(tmp_path)) == {*DATA, "pull.json"}
    assert hub.downloads["config.json"] == count, "what had come is not downloaded again"


def test_an_overloaded_hub_is_retried(hub: HubServer, tmp_path: Path):
    hub.statuses[f"/api/models/{REPO}"] = [503, 429]
    hub.statuses[f"/{REPO}/resolve/{COMMIT}/config.json"] = [500, 503]
    pull(URI, str(tmp_path))
    assert files(tmp_path)["config.json"] == DATA["config.json"]


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("hf://org/none", "no such repository, or a private one, and HF_TOKEN is not set"),
        (f"{URI}@v9", "the repository has no such revision"),
        ("hf://datasets/org/small", "write hf://org/name"),
        ("https://host/org/small", "write hf://org/name"),
        ("hf://org/../small", "write hf://org/name"),
        ("hf://org/a--b", "Cannot have -- or .."),
    ],
)
def test_a_missing_repository_or_revision_is_a_job_error(
    hub: HubServer, tmp_path: Path, uri: str, words: str
):
    assert words in refusal(uri, tmp_path)


@pytest.mark.parametrize("revision", ["main", "v1.0", "refs/pr/1", COMMIT])
def test_a_revision_is_resolved_to_its_commit(hub: HubServer, revision: str):
    assert read_repo(f"{URI}@{revision}").commit == COMMIT


def test_the_token_is_sent_to_the_hub_and_nowhere_else(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.token = TOKEN
    assert "HF_TOKEN is not set" in refusal(URI, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = refusal(URI, tmp_path)
    assert "HF_TOKEN is not accepted" in message
    assert "hf_wrong" not in message
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    pull(URI, str(tmp_path))
    elsewhere = [headers for _, path, headers in hub.requests if path.startswith("/cdn/")]
    assert elsewhere
    assert not any("Authorization" in headers for headers in elsewhere)
    assert TOKEN.encode() not in b"".join(files(tmp_path).values())


def test_a_token_that_is_stored_elsewhere_is_not_sent(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stored = tmp_path / "token"
    stored.write_text("hf_stored")
    monkeypatch.setenv("HF_TOKEN_PATH", str(stored))
    pull(URI, str(tmp_path / "m"))
    assert not any("Authorization" in headers for _, _, headers in hub.requests)


def test_a_gated_repository_is_reported(hub: HubServer, tmp_path: Path):
    hub.gated = {REPO}
    assert "is gated, and HF_TOKEN is not set: accept its terms" in refusal(URI, tmp_path)


@pytest.mark.parametrize("name", ["../x.json", "/etc/x", "a//b", "a\\b.json", "a\nb", "c:x.json"])
def test_names_that_would_leave_the_folder_are_refused(hub: HubServer, tmp_path: Path, name: str):
    hub.repos[REPO] = {**DATA, name: b"{}"}
    assert "the file name " in refusal(URI, tmp_path / "m")
    assert not hub.downloads


def test_a_folder_keeps_its_commit(hub: HubServer, tmp_path: Path):
    pull(URI, str(tmp_path))
    before = files(tmp_path)
    hub.commit = OTHER_COMMIT
    with pytest.raises(JobError, match=f"holds {REPO} at {COMMIT}, not .* into another folder"):
        pull(URI, str(tmp_path))
    assert files(tmp_path) == before


def test_a_damaged_record_is_reported(hub: HubServer, tmp_path: Path):
    (tmp_path / "pull.json").write_text("{}")
    with pytest.raises(JobError, match=r"pull\.json: damaged .*; delete the folder"):
        pull(URI, str(tmp_path))


def test_it_writes_to_an_object_store(hub: HubServer, s3: S3Server):
    store = s3.store()
    pulled = pull(URI, store.uri, storage_options=store.storage_options)
    assert {f.path for f in store.list_files()} == {*DATA, "pull.json"}
    assert store.read_bytes(LARGE) == DATA[LARGE]
    assert pull(URI, store.uri, storage_options=store.storage_options)["sha256"] == pulled["sha256"]


def command(hub: HubServer, *arguments: str, **env: str) -> Result:
    return pipeline("pull", *arguments, env={"HF_ENDPOINT": hub.url, **env})


def listing(**changed: Any) -> bytes:
    entry = {"type": "file", "path": LARGE, "size": 3, "oid": COMMIT, **changed}
    return json.dumps([{key: value for key, value in entry.items() if value is not None}]).encode()


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"[]", b"7", b"\xff", b'{"sha": "0123"}', b"{}", b'{"sha": 7}'),
        b"[" * 100_000,
        b'{"sha": "'
        + COMMIT.encode()
        + b'", "siblings": '
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}",
    ],
    ids=lambda answer: answer[:80].decode(errors="replace"),
)
def test_an_invalid_answer_of_the_hub_is_reported(hub: HubServer, tmp_path: Path, answer: bytes):
    hub.describes = answer
    assert "answer does not describe a repository" in refusal(URI, tmp_path, error_type=InfraError)


@pytest.mark.parametrize(
    "answer",
    [
        *(b"", b"7", b"\xff", b"[1, 2]", b"[{}]", b"[" * 100_000),
        listing(path=None),
        *(listing(size=size) for size in (None, "x", [1])),
        *(listing(lfs=lfs) for lfs in ({"size": 1}, 5)),
    ],
    ids=lambda answer: answer[:80].decode(errors="replace"),
)
def test_an_answer_without_files_is_reported(hub: HubServer, tmp_path: Path, answer: bytes):
    hub.lists = answer
    assert "answer does not describe a repository" in refusal(URI, tmp_path, error_type=InfraError)


def test_an_invalid_digest_counts_as_different(hub: HubServer, tmp_path: Path):
    hub.repos[REPO] = {LARGE: b"abc"}
    lfs = {"oid": "../../x", "size": 3, "pointerSize": 1}
    for hub.lists in (listing(oid=3), listing(lfs=lfs)):
        assert "the hub has " in refusal(URI, tmp_path)


def test_files_that_do_not_fit_the_disk_are_refused(hub: HubServer, tmp_path: Path):
    hub.lists = listing(size=10**15)
    assert "needs 1000000000000000 bytes, but" in refusal(URI, tmp_path, error_type=InfraError)
    assert not hub.downloads


def test_a_folder_that_cannot_be_created_is_reported(hub: HubServer, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(JobError, match=r"cannot write .*/file/m/\.pull"):
        pull(URI, str(tmp_path / "file" / "m"))


def test_a_full_disk_is_not_reported_as_a_failure_of_the_hub(hub: HubServer, tmp_path: Path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(DATA[LARGE]) // 2, hard))
    try:
        message = refusal(URI, tmp_path, LARGE, error_type=InfraError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert message == f"{URI}: cannot write to the local disk: File too large"


@pytest.mark.no_ray
def test_the_command_prints_commit_and_digest(hub: HubServer, tmp_path: Path):
    hub.token = TOKEN
    done = command(hub, URI, str(tmp_path / "m"), HF_TOKEN=TOKEN)
    assert done.code == 0, done.stderr
    assert COMMIT in done.stdout
    again = command(hub, URI, str(tmp_path / "m"), "--json", HF_TOKEN=TOKEN)
    assert (again.code, again.json["copied"]) == (0, 0)
    assert again.json["sha256"] in done.stdout
    wrong = command(hub, URI, str(tmp_path / "m"), "--json", HF_TOKEN="hf_wrong")
    assert wrong.code == 2
    assert "HF_TOKEN is not accepted" in wrong.json["error"]
    for text in (done.stdout, done.stderr, wrong.stdout, wrong.stderr):
        assert TOKEN not in text
        assert "hf_wrong" not in text


@pytest.mark.slow
def test_an_unreachable_hub_exits_with_7(hub: HubServer, tmp_path: Path):
    done = pipeline("pull", URI, str(tmp_path), env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert done.code == 7
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "the hub does not answer" in done.stderr
    done = pipeline("pull", URI, str(tmp_path), env={"HF_HUB_OFFLINE": "1"})
    assert (done.code, "HF_HUB_OFFLINE is set" in done.stderr) == (2, True), done.stderr
