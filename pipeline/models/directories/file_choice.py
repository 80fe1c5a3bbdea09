"""Choose the files of a model directory, or of an .onnx file, in a store.

A few names are looked up; the rest of the directory is not listed, unless there is something to
explain. Links to files are followed, wherever they point (the hub's own cache is made of such), and
what they hold is digested; links to folders are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline.core.errors import JobError
from pipeline.core.node_cache import cached_folder, key_of
from pipeline.models.directories.facts import STATIC
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
    ONNX_FOLDER,
    ONNX_SUFFIX,
    PROCESSOR,
    SINGLE,
    TOKENIZER,
    VOCABULARY,
    check_size,
    is_timm,
    parse_json,
    parse_object,
)
from pipeline.models.directories.onnx.graph import (
    MAX_FILE_BYTES,
    check_is_here,
    external_files,
    is_inside,
    name_of,
    parse_bytes,
    refusal,
)
from pipeline.models.directories.refused import MERGE, explain
from pipeline.models.directories.tensors import shards_of
from pipeline.models.directories.text.sentence_transformers import parse_modules
from pipeline.preprocessing.texts.text_settings import IDS
from pipeline.storage.interface import StoredFile
from pipeline.storage.store import Store

_THREADS = 16
_OF_FRAMES = "ForCTC"
"""Part of the name of a class that gives tokens for the frames of clips."""

Files = dict[str, StoredFile]
_NAMES = "names.json"


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
    first, at = modules[0]
    is_static = first == STATIC and at + SINGLE in files
    has_weights = bool({at + SINGLE, at + INDEX} & files.keys())
    if not is_static and (at + CONFIG not in files or not has_weights):
        raise explain(store, at, has_config=at + CONFIG in files)
    if at + ADAPTER in files:
        raise JobError(
            f"model.path = {store.url(at)}: {ADAPTER} is of an adapter (LoRA) beside the weights, "
            f"which would not be applied: {MERGE}; or take the file away if the weights have it"
        )
    config = {} if is_static else parse_object(_read(store, at + CONFIG, files), at + CONFIG)
    is_for_images = is_timm(config) or bool({at + PROCESSOR, at + BOTH} & files.keys())
    if not is_for_images and not {TOKENIZER, at + TOKENIZER} & files.keys():
        raise explain(store, at, has_config=True, has_weights=True)
    if _OF_FRAMES in str(config.get("architectures")):
        files |= _look_up(store, [at + VOCABULARY])
    _require_parts(store, modules, files)
    if at + SINGLE in files:  # the library prefers it to shards
        files.pop(at + INDEX, None)
    else:
        files |= _shards(store, at, files)
    _require_no_links(store, files)
    return [files[path] for path in sorted(files)]


def files_beside(store: Store) -> list[StoredFile]:
    """Return the files beside an .onnx file that define its tokens and vectors.

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
        names = OF_MODEL if module_type in ("Transformer", STATIC) else OF_MODULE
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
    """Refuse links to folders, which may lead anywhere."""
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


def choose_onnx(uri: str, options: Mapping[str, Any]) -> tuple[Store, list[StoredFile]]:
    """Return the folder of a model, and the files in it that are used, sorted by path.

    These are the file, those that its tensors name, and of a model of texts the settings beside it.
    What is in the file is read once per node, and again if its size or version changes.

    Raises:
        JobError: A file is missing, too large, or outside the directory.
    """
    store, at, name = _placed(uri, options)
    place = store.url(name)
    stored = store.stat(name)
    if stored is None:
        raise JobError(f"model.path = {place}: no such file")
    if stored.size_bytes > MAX_FILE_BYTES:
        raise refusal(place, f"has {stored.size_bytes} bytes, more than protobuf reads")

    def write(folder: Path) -> None:
        with store.open(name) as file:
            check_is_here(place, file)
        (folder / _NAMES).write_text(json.dumps(_belongings(place, store.read_bytes(name))))

    key = key_of(["external data", place, stored.size_bytes, stored.version], ("onnx",))
    external, takes_tokens = json.loads((cached_folder(key, write) / _NAMES).read_text())
    data = [
        _data_file(store, name, at, location, least_bytes)
        for location, least_bytes in external.items()
    ]
    beside = files_beside(store) if takes_tokens else []
    return store, sorted([stored, *data, *beside], key=lambda file: file.path)


def onnx_file_of(folder: Path) -> Path | None:
    """Return the .onnx file of a copy that was chosen here; None: it is another directory."""
    files = sorted([*folder.glob(f"*{ONNX_SUFFIX}"), *folder.glob(f"{ONNX_FOLDER}/*{ONNX_SUFFIX}")])
    return files[0] if len(files) == 1 else None


def _placed(uri: str, options: Mapping[str, Any]) -> tuple[Store, str, str]:
    """Return the folder of a model; where in it the file lies, '' or ending in `/`; its path."""
    folder, _, name = uri.rpartition("/")
    above, _, last = folder.rpartition("/")
    store = Store(folder or "/", options)
    if last == ONNX_FOLDER and store.stat(TOKENIZER) is None:
        outer = Store(above or "/", options)
        if outer.stat(TOKENIZER) is not None:
            return outer, f"{last}/", f"{last}/{name}"
    return store, "", name


def _belongings(place: str, data: bytes) -> tuple[dict[str, int], bool]:
    """Return the files with external data and how long each must be; whether it takes tokens."""
    model = parse_bytes(place, data)
    return external_files(model), any(value.name == IDS for value in model.graph.input)


def _data_file(store: Store, name: str, at: str, location: str, least_bytes: int) -> StoredFile:
    what = f"a tensor lies in {name_of(location)}"
    if not is_inside(location) or location.endswith(ONNX_SUFFIX):
        raise refusal(store.url(name), f"{what}, outside the directory of the file itself; refused")
    parts = location.split("/")
    paths = [at + "/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    if not store.is_object_store and any(os.path.islink(store.url(path)) for path in paths):
        raise refusal(store.url(name), f"{what}, which is a link; refused: copy the file there")
    stored = store.stat(at + location)
    if stored is None:
        raise refusal(store.url(name), f"{what}, and there is no such file beside it")
    if stored.size_bytes < least_bytes:
        raise refusal(
            store.url(name),
            f"{what} up to byte {least_bytes}, and that file has {stored.size_bytes} bytes: cut "
            "off or damaged? copy it again",
        )
    return stored
