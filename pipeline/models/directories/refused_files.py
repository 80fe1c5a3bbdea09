"""Say what a single file is that `model.path` names, and how to export it."""

from __future__ import annotations

import os
import re
from pathlib import PurePosixPath

from pipeline.core.errors import JobError
from pipeline.storage.store import Store
from pipeline.storage.uris import normalise

_HUB = "hf://"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_HEAD_BYTES = 512
_ONNX = "and give the .onnx file"
_TYPES = 'initial_types=[("x", FloatTensorType([None, NUM_FEATURES]))]'
_PICKLE = f"is a pickle, which can run code: export it to ONNX (skl2onnx.to_onnx) {_ONNX}"
_XGBOOST = (
    "is a model of XGBoost, which is not read: export it to ONNX "
    f"(onnxmltools.convert_xgboost(model, {_TYPES})) {_ONNX}"
)
_LIGHTGBM = (
    "is a model of LightGBM, which is not read: export it to ONNX "
    f"(onnxmltools.convert_lightgbm(model, {_TYPES}, zipmap=False)) {_ONNX}"
)
_CATBOOST = (
    "is a model of CatBoost, which is not read: export it to ONNX "
    f'(model.save_model("model.onnx", format="onnx")) {_ONNX}'
)
_WEIGHTS = (
    "is weights without what says how to build their model: name the folder that has config.json, "
    "or give model.name or model.factory with model.weights"
)
_BY_SUFFIX = {
    **dict.fromkeys((".joblib", ".pkl", ".pickle"), _PICKLE),
    ".cbm": _CATBOOST,
    ".ubj": _XGBOOST,
    ".gguf": "is GGUF, which is not read: name the folder of its float weights as safetensors",
    **dict.fromkeys((".safetensors", ".pt", ".pth", ".bin", ".ckpt"), _WEIGHTS),
}
_BY_HEAD = (
    (re.compile(rb"\x80[\x02-\x05]"), _PICKLE),
    (re.compile(rb'\s*\{\s*"learner"\s*:|\{L[\x00-\xff]{8}\x07learner'), _XGBOOST),
    (re.compile(rb'\s*\{\s*"version"\s*:\s*\[[^\]]*\]\s*,\s*"learner"'), _XGBOOST),
    (re.compile(rb"tree\r?\nversion="), _LIGHTGBM),
    (re.compile(rb"CBM1"), _CATBOOST),
)


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
    told = next((told for start, told in _BY_HEAD if start.match(head)), None)
    suffix = PurePosixPath(name.lower()).suffix
    if told is None or suffix in (".pt", ".pth", ".bin", ".ckpt"):  # which are pickles as well
        told = _BY_SUFFIX.get(suffix)
    if told is None:
        told = "is a file, expected the directory of a model, or an .onnx file"
    return JobError(f"model.path = {place}: {name} {told}")
