"""The code sent with a job: complete, without secrets and caches, limited in size."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path

import pytest

from pipeline.core.errors import JobError
from pipeline.execution.submit import code as code_module
from pipeline.execution.submit.code import packed

GOES = {"nets.py": "x = 1", "lib/__init__.py": "", "lib/labels.json": "[]", "keep/data.txt": "1"}
GOES |= {"lib/token_secrets_reader.py": "", "lib/tokenizer.json": "{}", "added_tokens.json": "{}"}
SECRETS = (
    *(
        ".env",
        ".env.local",
        ".envrc",
        ".netrc",
        ".pgpass",
        ".my.cnf",
        ".vault-token",
        ".aws/config",
    ),
    *(".bash_history", "lib/key.pem", "lib/ID_RSA", "key.ppk", "client.keytab", "prod.env"),
    *("terraform.tfvars", "rclone.conf", "kubeconfig", "credentials", "aws_credentials"),
    *("deep/creds.json", "gcp-key.json", "service_account-1.json", "secret.yaml", "secrets.py"),
    *("my-secrets.yaml", "a.secret.toml", "token.txt", "hub_token", "lib/api-token.json"),
)
CACHES = (".git/config", "__pycache__/nets.cpython-311.pyc", "lib/old.pyc", ".venv/bin/python")
IGNORED = ("build/x.bin", "lib/weights.bin", "lib/tmp/a.txt", "notes.txt")


def make(root: Path, *names: str, **contents: str) -> Path:
    for name, text in {**dict.fromkeys(names, "secret"), **contents}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "nightly.yaml"
    path.write_text("sink: {uri: /out}\n")
    return str(path)


def sent(job: str, code: Path) -> dict[str, str]:
    with packed(job, str(code)) as package:
        files = [path for path in package.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(package.folder)): path.read_text() for path in files}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = make(tmp_path / "code", *SECRETS, *CACHES, *IGNORED, **GOES)
    (root / ".gitignore").write_text("build/\n*.txt\n!keep/data.txt\n")
    (root / "lib" / ".rayignore").write_text("weights.*\n/tmp\n")
    os.symlink(root / ".env", root / "harmless.py")
    os.symlink("/etc", root / "etc")
    return root


def test_secrets_caches_links_and_ignored_files_are_not_sent(
    job: str, tree: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    assert sent(job, tree) == {**GOES, "nightly.yaml": "sink: {uri: /out}\n"}
    (line,) = [message for message in caplog.messages if "sending" in message]
    num_bytes = sum(map(len, GOES.values()))
    assert f"sending {len(GOES)} files, {num_bytes} bytes from {tree}: " in line
    going, left_out = line.split("; left out: ")
    assert all(name in going for name in GOES)
    assert ".aws" in left_out


def test_a_file_name_that_is_not_utf_8_is_refused(job: str, tree: Path):
    (tree / "l\N{LATIN SMALL LETTER E WITH ACUTE}.py").write_text("x = 1")
    (tree / os.fsdecode(b"x\xff.py")).write_text("x = 1")
    with pytest.raises(JobError, match=r"file name 'x\\udcff.py' is not UTF-8"):
        sent(job, tree)
    (tree / os.fsdecode(b"x\xff.py")).rename(tree / os.fsdecode(b".x\xff.py"))
    assert "l\N{LATIN SMALL LETTER E WITH ACUTE}.py" in sent(job, tree)


def test_a_wheel_is_sent_unpacked(job: str, tmp_path: Path):
    wheel = tmp_path / "nets-1.0-py3-none-any.whl"
    files = {**GOES, "nets-1.0.dist-info/METADATA": "Name: nets"}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in {**files, ".env": "secret", "lib/key.pem": "secret"}.items():
            archive.writestr(name, text)
        archive.writestr("../../outside.py", "x = 2")
    assert sent(job, wheel) == {
        **files,
        "outside.py": "x = 2",
        "nightly.yaml": "sink: {uri: /out}\n",
    }
    assert not (tmp_path / "outside.py").exists()


def test_the_fingerprint_covers_the_sent_files(job: str, tree: Path):
    def digest() -> str:
        with packed(job, str(tree)) as package:
            return package.code_digest

    first = digest()
    (tree / "lib" / "weights.bin").write_text("other")
    (tree / ".env").write_text("other")
    assert digest() == first
    (tree / "nets.py").write_text("x = 2")
    assert digest() != first
    with packed(job, None) as package:
        assert package.code_digest == ""


def test_too_much_code_is_refused_with_the_numbers(
    job: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(code_module, "MAX_CODE_MIB", 1)
    root = make(tmp_path / "code", **GOES)
    (root / "lib" / "weights.bin").write_bytes(bytes(3 << 20))
    with pytest.raises(
        JobError, match=r"3\.0 MiB; at most 1 MiB can be sent.* lib/weights.bin \(3\.0 MiB\)"
    ):
        sent(job, root)
    (root / ".rayignore").write_text("*.bin\n")
    assert "nets.py" in sent(job, root)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["pipeline/__init__.py"], "would hide this package"),
        (["pipeline.py"], "would hide this package"),
        ([".env"], "it has no file that can be sent"),
    ],
)
def test_code_that_cannot_be_used_is_refused(
    names: list[str], words: str, job: str, tmp_path: Path
):
    with pytest.raises(JobError, match=words):
        sent(job, make(tmp_path / "code", *names))


def test_what_is_neither_folder_nor_wheel_is_refused(job: str, tmp_path: Path):
    (tmp_path / "broken.whl").write_text("no zip")
    for path in (tmp_path / "none", tmp_path / "broken.whl", Path(job)):
        with pytest.raises(JobError, match="give a folder of Python modules, or a wheel"):
            sent(job, path)
