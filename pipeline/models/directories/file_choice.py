"""Which files of a directory are used, and which directories are refused by what lies in them.

A few names are looked up; the rest of the directory is not listed, unless there is something to
explain. Links to files are followed, wherever they point (the hub's own cache is made of such), and
what they hold is digested; links to folders are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline.core.errors import JobError
from pipeline.models.directories.files import (
    ADAPTER,
    BOTH,
    CONFIG,
    GENERATION,
    INDEX,
    MODULES,
    NAMES,
    OF_MODEL,
    OF_MODULE,
    PROCESSOR,
    SINGLE,
    TOKENIZER,
    check_size,
    is_timm,
    parse_json,
    parse_object,
)
from pipeline.models.directories.refused import MERGE, explain
from pipeline.models.directories.tensors import shards_of
from pipeline.models.directories.text.sentence_transformers import parse_modules
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

_THREADS = 16

Files = dict[str, StoredFile]


def choose_files(store: Store) -> list[StoredFile]:
    """Choose the files of a directory that are used, sorted by path.

    Raises:
        JobError: It is refused by what lies in it, or a file is missing or too large.
    """
    files = _look_up(store, NAMES)
    if MODULES in files:
        modules = parse_modules(parse_json(_read(store, MODULES, files), MODULES))
        files.pop(GENERATION, None)  # encoders write no texts
    else:
        modules = [("Transformer", "")]
    files |= _look_up(store, _of_modules(modules))
    at = modules[0][1]
    if at + CONFIG not in files or not {at + SINGLE, at + INDEX} & files.keys():
        raise explain(store, at, has_config=at + CONFIG in files)
    if at + ADAPTER in files:
        raise JobError(
            f"model.path = {store.url(at)}: {ADAPTER} is of an adapter (LoRA) beside the weights, "
            f"which would not be applied: {MERGE}; or take the file away if the weights have it"
        )
    config = parse_object(_read(store, at + CONFIG, files), at + CONFIG)
    is_for_images = is_timm(config) or bool({at + PROCESSOR, at + BOTH} & files.keys())
    if not is_for_images and not {TOKENIZER, at + TOKENIZER} & files.keys():
        raise explain(store, at, has_config=True, has_weights=True)
    _require_parts(store, modules, files)
    if at + SINGLE in files:  # which the library takes, whatever lies beside it
        files.pop(at + INDEX, None)
    else:
        files |= _shards(store, at, files)
    _require_no_links(store, files)
    return [files[path] for path in sorted(files)]


def files_beside(store: Store) -> list[StoredFile]:
    """Return what lies beside an .onnx file and says how texts become tokens and vectors.

    Raises:
        JobError: A file is too large, or modules.json names a class that is not read.
    """
    files = _look_up(store, set(NAMES) - {SINGLE, INDEX, ADAPTER})
    if MODULES in files:
        modules = parse_modules(parse_json(_read(store, MODULES, files), MODULES))
        layers = [module for module in modules if module[0] != "Transformer"]
        files |= _look_up(store, _of_modules(layers))
        _require_parts(store, layers, files)
    _require_no_links(store, files)
    return [*files.values()]


def _of_modules(modules: Iterable[tuple[str, str]]) -> Iterator[str]:
    for module_type, at in modules:
        names = OF_MODEL if module_type == "Transformer" else OF_MODULE
        yield from (at + name for name in names)


def _require_parts(store: Store, modules: Sequence[tuple[str, str]], files: Files) -> None:
    """Refuse if a module of sentence-transformers lacks its settings or its weights."""
    for module_type, at in modules:
        if module_type == "Dense" and not {at + CONFIG, at + SINGLE} <= files.keys():
            raise explain(store, at, has_config=at + CONFIG in files)
        if module_type == "Pooling" and at + CONFIG not in files:
            raise JobError(f"model.path: {store.url(at + CONFIG)} is missing")


def _shards(store: Store, at: str, files: Files) -> Files:
    index = parse_object(_read(store, at + INDEX, files), at + INDEX)
    names = sorted(at + name for name in shards_of(index))
    shards = _look_up(store, names)
    missing = [name for name in names if name not in shards]
    if missing:
        raise JobError(f"model.path: {store.url(missing[0])} is missing; {at}{INDEX} names it")
    return shards


def _look_up(store: Store, paths: Iterable[str]) -> Files:
    """Return those files that are there."""
    with ThreadPoolExecutor(_THREADS) as pool:
        files = [file for file in pool.map(store.stat, dict.fromkeys(paths)) if file is not None]
    for file in files:
        check_size(file.path, file.size_bytes, store.url(file.path))
    return {file.path: file for file in files}


def _read(store: Store, path: str, files: Files) -> bytes:
    try:
        return store.read_bytes(files[path].path)
    except FileNotFoundError:
        raise JobError(f"model.path: {store.url(path)} vanished") from None


def _require_no_links(store: Store, files: Files) -> None:
    """Refuse links to folders, which could lead anywhere."""
    if store.is_object_store:
        return
    for folder in {path.rpartition("/")[0] for path in files} - {""}:
        parts = folder.split("/")
        for end in range(1, len(parts) + 1):
            if os.path.islink(store.url("/".join(parts[:end]))):
                raise JobError(
                    f"model.path: {store.url(folder)} is a link to a folder; only links to files "
                    "are followed: copy the folder"
                )
