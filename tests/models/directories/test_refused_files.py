"""Test that other files than .onnx as `model.path` are refused unread, with the way to export."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import pytest

from pipeline.core.errors import JobError
from pipeline.models.directories.snapshot import open_directory

XGBOOST, LIGHTGBM = b'{"learner":{"attributes":{}},"version":[3,2,0]}', b"tree\nversion=v4\n"
UBJSON = b"{L" + struct.pack(">q", 7) + b"\x07learner{"


class Marker:
    """A pickle of this leaves a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def refusal(uri: str) -> str:
    with pytest.raises(JobError) as caught:
        open_directory(uri)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["lr.joblib", "lr.pkl", "lr.pickle", "lr.PKL", "model"])
def test_a_pickle_names_the_export_to_onnx(tmp_path: Path, name: str):
    (tmp_path / name).write_bytes(pickle.dumps(Marker(tmp_path / "ran")))
    assert refusal(str(tmp_path / name)) == (
        f"model.path = {tmp_path}/{name}: {name} is a pickle, which can run code: export it to "
        "ONNX (skl2onnx.to_onnx) and give the .onnx file"
    )
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("xgb.json", XGBOOST, "convert_xgboost("),
        ("xgb.json", b'{"version":[3,2,0],"learner":{', "convert_xgboost("),
        ("xgb.ubj", UBJSON, "convert_xgboost("),
        ("xgb.ubj", b"", "convert_xgboost("),
        ("lgb.txt", LIGHTGBM, "convert_lightgbm("),
        ("lgb.txt", LIGHTGBM.replace(b"\n", b"\r\n"), "convert_lightgbm("),
        ("cat.cbm", b"CBM1", 'model.save_model("model.onnx", format="onnx")'),
        ("w.safetensors", b"", "name the folder that has config.json"),
        ("w.pth", b"\x80\x02}q\x00.", "model.factory with model.weights"),
        ("config.json", b"{}", "expected the directory of a model, or an .onnx file"),
        ("model-q4.gguf", b"GGUF", "GGUF, which is not read"),
        ("notes.txt", b"tree", "expected the directory of a model, or an .onnx file"),
    ],
)
def test_each_kind_of_file_names_its_way(tmp_path: Path, name: str, content: bytes, words: str):
    (tmp_path / name).write_bytes(content)
    message = refusal(str(tmp_path / name))
    assert message.startswith(f"model.path = {tmp_path}/{name}: {name} is ")
    assert words in message


def test_a_folder_may_have_such_a_name(tmp_path: Path):
    (tmp_path / "lr.joblib").mkdir()
    assert "no such directory, or there is no file in it" in refusal(str(tmp_path / "lr.joblib"))


def test_a_name_of_the_hub_says_how_to_copy_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    wanted = "pipeline pull hf://google/vit-base-patch16-224@REVISION models/vit-base-patch16-224"
    assert wanted in refusal("google/vit-base-patch16-224")
    (tmp_path / "google").mkdir()
    assert "pull" not in refusal("google/vit-base-patch16-224")
    for path in ("./google/vit", f"{tmp_path}/none", "a/b/c", "none", "../x/y"):
        assert "pull" not in refusal(path)


@pytest.mark.parametrize("uri", ["hf://org/name", "hf://org/name/", "hf://org/name@main"])
def test_a_run_downloads_nothing_from_the_hub(uri: str):
    revision = "main" if "@" in uri else "REVISION"
    assert refusal(uri) == (
        f"model.path = {uri}: a run downloads nothing: pipeline pull hf://org/name@{revision} DEST "
        "first, then model.path: DEST"
    )
