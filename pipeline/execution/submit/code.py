"""Choose what is sent with a job: its file, and the user's code without secrets and caches.

Ray's own packaging sends a folder as it is. Here the job file joins the code, names that suggest
secrets are left out, and the fingerprint is that of the files that are sent.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import num_of, printable

log = logging.getLogger(__name__)

MAX_CODE_MIB = 100
"""The head of a cluster keeps packages in memory, and each node copies them."""
_IGNORE_FILES = (".gitignore", ".rayignore")
_NEVER_SENT = (
    *(".[!.]*", "..?*"),
    *("*.env", "*.pem", "*.key", "*.p12", "*.pfx", "*.jks", "*.kdbx", "*.ppk", "*.keytab"),
    *("*.tfstate*", "*.tfvars*", "id_rsa*", "id_dsa*", "id_ecdsa*", "id_ed25519*"),
    *("credentials", "credentials.*", "secret", "secret.*", "secrets", "secrets.*"),
    *("service_account*.json", "key.json", "*[-_]key.json", "kubeconfig", "rclone.conf"),
    *("__pycache__", "*.py[co]", "venv", "node_modules"),
)
_SENT_AS_MODULE = (
    *("*secret*", "*credential*", "*creds*", "auth_token"),
    *("token", "token.*", "*[-_]token", "*[-_]token.*"),
)
"""Names of secrets, too, except for modules, which may be named after what their code handles."""
_MOST_SENT_SHOWN = 10
_MOST_LEFT_OUT_SHOWN = 3
Rules = Sequence[tuple[Path, Any]]
"""Folders with the patterns of an ignore file in each."""


@dataclass(frozen=True)
class Package:
    """A folder that is sent as the working directory of a job."""

    folder: Path
    code_digest: str
    """Digest of the names and bytes of the user's code; '' without any."""


@contextlib.contextmanager
def packed(job_path: str, code: str | None) -> Iterator[Package]:
    """Yield the package that is sent with a job.

    Args:
        job_path: The job file, which keeps its name.
        code: A folder of modules, or a wheel; None: no code is sent.

    Raises:
        JobError: The code is neither, is too large, or would hide this package.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-submit-") as name:
        folder = Path(name)
        digest = "" if code is None else _add_code(Path(code), folder)
        shutil.copyfile(job_path, folder / Path(job_path).name)
        yield Package(folder, digest)


def _add_code(code: Path, folder: Path) -> str:
    """Copy the user's code into a folder and log what is sent; return its digest."""
    if code.is_dir():
        files = [*_files_below(code, ())]
        left_out = [path.relative_to(code).as_posix() for path, is_sent in files if not is_sent]
        paths = {path.relative_to(code).as_posix(): path for path, is_sent in files if is_sent}
        for name in paths:
            if not name.isascii() and name != os.fsencode(name).decode(errors="replace"):
                raise JobError(f"--code {code}: the file name {name!a} is not UTF-8: rename it")
        sizes = {name: path.stat().st_size for name, path in paths.items()}
        _require_small(code, sizes)
        for name, path in paths.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder / name)
    elif code.suffix == ".whl" and zipfile.is_zipfile(code):
        with zipfile.ZipFile(code) as wheel:
            entries = [entry for entry in wheel.infolist() if not entry.is_dir()]
            sizes = {
                entry.filename: entry.file_size for entry in entries if _may_go(entry.filename)
            }
            left_out = [entry.filename for entry in entries if entry.filename not in sizes]
            _require_small(code, sizes)
            wheel.extractall(folder, sizes)
    else:
        raise JobError(f"--code {code}: give a folder of Python modules, or a wheel (.whl)")
    if (folder / "pipeline").exists() or (folder / "pipeline.py").exists():
        raise JobError(f"--code {code}: its module `pipeline` would hide this package: rename it")
    if not sizes:
        raise JobError(f"--code {code}: it has no file that can be sent")
    sent = sorted(sizes, key=lambda name: name.endswith(".py"))  # modules last
    amount = f"{num_of(len(sizes), 'file')}, {num_of(sum(sizes.values()), 'byte')}"
    ignored = [name for name in left_out if os.path.basename(name) not in _IGNORE_FILES]
    others = f"; left out: {_some(ignored, _MOST_LEFT_OUT_SHOWN)}" if ignored else ""
    log.info("sending %s from %s: %s%s", amount, code, _some(sent, _MOST_SENT_SHOWN), others)
    return _digest(folder)


def _some(names: Sequence[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def _files_below(folder: Path, inherited: Rules) -> Iterator[tuple[Path, bool]]:
    """Yield each file below a folder, and each folder that is left out; tell whether it is sent.

    As in Ray, a `.gitignore` or `.rayignore` applies to its folder and those below. Links are left
    out: their targets may lie elsewhere, or be secrets.
    """
    rules = [*inherited, *_rules_of(folder)]
    for path in sorted(folder.iterdir()):
        is_folder = path.is_dir()
        goes = not path.is_symlink() and _may_go(path.name)
        goes = goes and not _is_ignored(path, rules, is_folder=is_folder)
        if goes and is_folder:
            yield from _files_below(path, rules)
        else:
            yield path, goes and path.is_file()


def _rules_of(folder: Path) -> Rules:
    from pathspec import GitIgnoreSpec

    rules = []
    for name in _IGNORE_FILES:
        with contextlib.suppress(FileNotFoundError):
            lines = (folder / name).read_text(errors="replace").splitlines()
            rules.append((folder, GitIgnoreSpec.from_lines(lines)))
    return rules


def _is_ignored(path: Path, rules: Rules, *, is_folder: bool) -> bool:
    end = "/" if is_folder else ""
    return any(spec.match_file(f"{path.relative_to(folder)}{end}") for folder, spec in rules)


def _may_go(name: str) -> bool:
    """Tell whether no part of a name is that of a secret or a cache."""
    parts = name.lower().split("/")
    patterns = _NEVER_SENT + (() if name.endswith(".py") else _SENT_AS_MODULE)
    return not any(fnmatch(part, pattern) for part in parts for pattern in patterns)


def _require_small(code: Path, sizes: dict[str, int]) -> None:
    num_bytes = sum(sizes.values())
    if num_bytes > MAX_CODE_MIB << 20:
        largest = max(sizes, key=lambda name: sizes[name])
        raise JobError(
            f"--code {code}: {num_bytes / 2**20:,.1f} MiB; at most {MAX_CODE_MIB} MiB can be sent. "
            f"The largest file is {printable(largest)} ({sizes[largest] / 2**20:,.1f} MiB): "
            "exclude data and weights in a .rayignore"
        )


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
