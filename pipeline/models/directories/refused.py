"""Explain why a directory or a file is refused, by names and first bytes, and name the way out."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from pipeline.core.errors import JobError
from pipeline.core.printable import clean_message
from pipeline.models.directories.files import ADAPTER, ONNX_FOLDER, VOCABULARIES
from pipeline.models.directories.library import FACTORY_ADVICE
from pipeline.storage.errors import secret_values, storage_errors
from pipeline.storage.object_store import object_store
from pipeline.storage.store import Store
from pipeline.storage.uris import normalise, root_path

MERGE = "merge it with peft: model.merge_and_unload().save_pretrained(NEW)"
_TAKE = "which is not supported; take the PyTorch weights of this model as safetensors"
_CODE = "which can run code when it is loaded"
_PICKLE = (
    f"a pickle, {_CODE}; convert it where you trust it: load it with the class of its library, and "
    "save_pretrained(NEW) writes safetensors"
)
_KINDS = {
    "MLmodel": f"of an MLflow model, {_CODE}; take the directory that was logged in it",
    "saved_model.pb": f"a TensorFlow SavedModel, {_TAKE}",
    ADAPTER: f"of an adapter (LoRA), not a model; {MERGE}",
    "model_index.json": "of a diffusers pipeline, which is not supported",
    "gliner_config.json": f"of GLiNER, which is not supported; {FACTORY_ADVICE}",
    "config.cfg": f"of a spaCy pipeline, which is not supported; {FACTORY_ADVICE}",
    ".onnx": "an ONNX file: name the file itself in model.path",
    **dict.fromkeys((".bin", ".pt", ".pth", ".pkl", ".pickle", ".joblib", ".ckpt"), _PICKLE),
    **dict.fromkeys((".torchscript", ".ts"), f"a TorchScript archive, {_CODE}, {_TAKE}"),
    ".pt2": f"an exported program, {_CODE}, {_TAKE}",
    ".gguf": f"GGUF, {_TAKE}",
    **dict.fromkeys((".h5", ".keras"), f"a Keras model, {_TAKE}"),
    ".msgpack": f"a Flax model, {_TAKE}",
}
"""Names and suffixes of files of other formats -> what they are, and the way out."""
_HUB = "hf://"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD_BYTES = 512
_EXPORT = "export it to ONNX ({}) and give the .onnx file"
_TYPES = 'initial_types=[("x", FloatTensorType([None, NUM_FEATURES]))]'
_PICKLED = f"is a pickle, which can run code: {_EXPORT.format('skl2onnx.to_onnx')}"
_TREES = "is a model of {}, which is not supported: " + _EXPORT
_XGBOOST = _TREES.format("XGBoost", f"onnxmltools.convert_xgboost(model, {_TYPES})")
_LIGHTGBM = _TREES.format(
    "LightGBM", f"onnxmltools.convert_lightgbm(model, {_TYPES}, zipmap=False)"
)
_CATBOOST = _TREES.format("CatBoost", 'model.save_model("model.onnx", format="onnx")')
_WEIGHTS = (
    "is weights without what says how to build their model: name the folder that has config.json, "
    "or give model.name or model.factory with model.weights"
)
_FILES_BY_SUFFIX = {
    **dict.fromkeys((".joblib", ".pkl", ".pickle"), _PICKLED),
    ".cbm": _CATBOOST,
    ".ubj": _XGBOOST,
    ".gguf": "is GGUF, which is not supported: name the folder of its float weights as safetensors",
    **dict.fromkeys((".safetensors", ".pt", ".pth", ".bin", ".ckpt"), _WEIGHTS),
}
_BY_HEAD = (
    (re.compile(rb"\x80[\x02-\x05]"), _PICKLED),
    (re.compile(rb'\s*\{\s*"learner"\s*:|\{L[\x00-\xff]{8}\x07learner'), _XGBOOST),
    (re.compile(rb'\s*\{\s*"version"\s*:\s*\[[^\]]*\]\s*,\s*"learner"'), _XGBOOST),
    (re.compile(rb"tree\r?\nversion="), _LIGHTGBM),
    (re.compile(rb"CBM1"), _CATBOOST),
)


def explain(store: Store, at: str, *, has_config: bool, has_weights: bool = False) -> JobError:
    """Return the error of a directory that lacks config, weights, or tokenizer.

    Args:
        at: Where they are looked for: '' or a folder ending in `/`.
        has_config: It has a `config.json`.
        has_weights: It has weights too; the tokenizer is missing.
    """
    names = _names(store, at)
    where = f"model.path = {store.url(at)}"
    if not names and store.stat(at) is not None:
        return explain_file(store, at)
    if not names:
        return JobError(f"{where}: no such directory, or there is no file in it")
    if has_weights:
        return JobError(f"{where}: {_without_tokenizer(names)}")
    if exported := [
        name for name in _names(store, f"{at}{ONNX_FOLDER}/") if name.endswith(".onnx")
    ]:
        name = "model.onnx" if "model.onnx" in exported else exported[0]
        file = store.url(f"{at}{ONNX_FOLDER}/{clean_message(name, 80)}")
        return JobError(f"{where}: its weights are ONNX: name the file in model.path: {file}")
    for known, what in _KINDS.items():
        for name in names:
            if known in (name, PurePosixPath(name.lower()).suffix):
                return JobError(f"{where}: {clean_message(name, 80)} is {what}")
    lacks = "no model.safetensors" if has_config else "no config.json"
    shown = ", ".join(clean_message(name, 60) for name in names[:5])
    return JobError(
        f"{where}: {lacks}; expected a directory with config.json and model.safetensors, it has "
        f"{shown}"
    )


def _without_tokenizer(names: list[str]) -> str:
    old = [name for name in VOCABULARIES if name in names]
    if not old:
        return (
            "neither tokenizer.json, as models of texts have it, nor preprocessor_config.json, as "
            f"models of images have it; {FACTORY_ADVICE}"
        )
    return (
        f"has {old[0]} and no tokenizer.json; make one with the library: AutoTokenizer."
        "from_pretrained(DIR).save_pretrained(DIR), or take a snapshot with one if it writes none"
    )


def _names(store: Store, at: str) -> list[str]:
    """List the names directly in a folder, sorted; of a large one in an object store the first."""
    with storage_errors(f"cannot list {store.url(at)}", secret_values(store.storage_options)):
        if not store.is_object_store:
            try:
                return sorted(entry.name for entry in os.scandir(store.url(at)))
            except (FileNotFoundError, NotADirectoryError):
                return []
        folder = root_path(store.url(at))
        page = object_store(store.uri, store.storage_options).list_page(folder, True, None)
        return sorted(file.path.rpartition("/")[2] for file in page.files)


def require_local_model(uri: str) -> None:
    """Refuse a name of a hub, from which a run downloads nothing.

    Args:
        uri: `model.path`, as the job has it.

    Raises:
        JobError: It begins with `hf://`, or looks like `org/name` and is no path here.
    """
    if uri.startswith(_HUB):
        name = uri if "@" in uri else f"{uri.rstrip('/')}@REVISION"
        raise JobError(
            f"model.path = {uri}: a run downloads nothing: pipeline pull {name} DEST first, then "
            "model.path: DEST"
        )
    if not _HUB_NAME.fullmatch(uri) or uri.endswith(".onnx"):
        return
    owner, _, name = uri.partition("/")
    if not os.path.lexists(owner):
        raise JobError(
            f"model.path = {normalise(uri)}: no such directory; is it a hub's name? pipeline pull "
            f"{_HUB}{uri}@REVISION models/{name}, then model.path: models/{name}"
        )


def explain_file(store: Store, at: str) -> JobError:
    """Return the error of a file that is no .onnx file, by its name and its first bytes.

    Args:
        at: Its path below, '' if the store is the file itself.
    """
    place = store.url(at)
    name = PurePosixPath(place).name
    with store.open(at) as file:
        head = file.read(_HEAD_BYTES)
    reason = next((reason for start, reason in _BY_HEAD if start.match(head)), None)
    suffix = PurePosixPath(name.lower()).suffix
    if reason is None or suffix in (".pt", ".pth", ".bin", ".ckpt"):  # these are pickles, too
        reason = _FILES_BY_SUFFIX.get(suffix)
    if reason is None:
        reason = "is a file, expected the directory of a model, or an .onnx file"
    return JobError(f"model.path = {place}: {name} {reason}")
