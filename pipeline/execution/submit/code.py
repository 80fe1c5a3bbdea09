"""What goes along with a job: its file, and the user's own code, without secrets and caches."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.printable import num_of, printable

log = logging.getLogger(__name__)

MAX_CODE_MIB = 100
"""The head of a cluster keeps what is sent in its memory, and each node copies it."""
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
"""Secrets by their names as well, but in a module the name is that of what the code is about."""
_SHOWN_SENT = 10
"""So many names of what is sent are shown, modules last."""
_SHOWN = 3
"""So many names of what is left out are shown."""


@dataclass(frozen=True)
class Package:
    """A folder that is sent along as the job's working directory."""

    folder: Path
    code_digest: str
    """Of the names and bytes of the user's code; '' without any."""


@contextlib.contextmanager
def packed(job_path: str, code: str | None) -> Iterator[Package]:
    """Yield what goes along with a job.

    Args:
        job_path: The job file, which keeps its name.
        code: A folder whose modules the job names, or a wheel; None: none is sent.

    Raises:
        JobError: The code is none, is too large, or would hide this package.
    """
    with tempfile.TemporaryDirectory(prefix="pipeline-submit-") as name:
        folder = Path(name)
        digest = "" if code is None else _add_code(Path(code), folder)
        shutil.copyfile(job_path, folder / Path(job_path).name)
        yield Package(folder, digest)


def _add_code(code: Path, folder: Path) -> str:
    """Copy the user's code into a folder, and say what it is; return its digest."""
    if code.is_dir():
        chosen, left_out = _choose(code)
        for name in chosen:
            if not name.isascii() and name != os.fsencode(name).decode(errors="replace"):
                raise JobError(f"--code {code}: the file name {name!a} is not UTF-8: rename it")
        sizes = {name: (code / name).stat().st_size for name in chosen}
        _require_room(code, sizes)
        for name in chosen:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(code / name, folder / name)
    elif code.suffix == ".whl" and zipfile.is_zipfile(code):
        with zipfile.ZipFile(code) as wheel:
            files = [entry for entry in wheel.infolist() if not entry.is_dir()]
            sizes = {entry.filename: entry.file_size for entry in files if _may_go(entry.filename)}
            left_out = [entry.filename for entry in files if entry.filename not in sizes]
            _require_room(code, sizes)
            wheel.extractall(folder, sizes)
    else:
        raise JobError(f"--code {code}: give a folder of Python modules, or a wheel (.whl)")
    if (folder / "pipeline").exists() or (folder / "pipeline.py").exists():
        raise JobError(f"--code {code}: its module `pipeline` would hide this package: rename it")
    if not sizes:
        raise JobError(f"--code {code}: nothing in it can be sent")
    sent = sorted(sizes, key=lambda name: name.endswith(".py"))
    amount = f"{num_of(len(sizes), 'file')}, {num_of(sum(sizes.values()), 'byte')}"
    others = f"; left out: {_some(left_out, _SHOWN)}" if left_out else ""
    log.info("of %s go along %s: %s%s", code, amount, _some(sent, _SHOWN_SENT), others)
    return _digest(folder)


def _some(names: list[str], most: int) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more


def _choose(root: Path) -> tuple[list[str], list[str]]:
    """Return the files of a folder that are sent, and what is left out, relative to it.

    As Ray does, a `.gitignore` or `.rayignore` counts for its own folder and those below it. Links
    are left out: what they lead to may lie elsewhere, or be a secret.
    """
    chosen, left_out, rules = list[str](), list[str](), dict[str, list[tuple[str, Any]]]()
    for folder, folders, files in os.walk(root):
        place = os.path.relpath(folder, root)
        inherited = rules.get(os.path.dirname(place) if place != "." else "", [])
        rules[place if place != "." else ""] = mine = inherited + _rules_of(folder)
        for name in sorted(folders):
            path = os.path.join(folder, name)
            if os.path.islink(path) or not _may_go(name) or _is_ignored(f"{path}/", mine):
                folders.remove(name)
                left_out.append(os.path.relpath(path, root))
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            is_file = stat.S_ISREG(os.lstat(path).st_mode)
            goes = is_file and _may_go(name) and not _is_ignored(path, mine)
            (chosen if goes else left_out).append(os.path.relpath(path, root))
    return chosen, [path for path in left_out if os.path.basename(path) not in _IGNORE_FILES]


def _rules_of(folder: str) -> list[tuple[str, Any]]:
    """Return the folder with the patterns of each of its files of them."""
    from pathspec import GitIgnoreSpec

    rules = []
    for name in _IGNORE_FILES:
        with contextlib.suppress(FileNotFoundError):
            lines = Path(folder, name).read_text(errors="replace").splitlines()
            rules.append((folder, GitIgnoreSpec.from_lines(lines)))
    return rules


def _is_ignored(path: str, rules: list[tuple[str, Any]]) -> bool:
    return any(spec.match_file(path[len(folder) + 1 :]) for folder, spec in rules)


def _may_go(name: str) -> bool:
    """Tell whether no part of a name is that of a secret or a cache."""
    from fnmatch import fnmatch

    parts = name.lower().split("/")
    patterns = _NEVER_SENT + (() if name.endswith(".py") else _SENT_AS_MODULE)
    return not any(fnmatch(part, pattern) for part in parts for pattern in patterns)


def _require_room(code: Path, sizes: dict[str, int]) -> None:
    num_bytes = sum(sizes.values())
    if num_bytes > MAX_CODE_MIB << 20:
        largest = max(sizes, key=lambda name: sizes[name])
        raise JobError(
            f"--code {code}: {num_bytes / 2**20:,.1f} MiB; at most {MAX_CODE_MIB} MiB are sent. "
            f"The largest file is {printable(largest)} ({sizes[largest] / 2**20:,.1f} MiB): leave "
            "out data and weights by a .rayignore"
        )


def _digest(folder: Path) -> str:
    """Return the digest of all files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()
