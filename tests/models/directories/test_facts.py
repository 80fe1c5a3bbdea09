"""What is kept of a directory's facts as JSON is what was read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.models import onnx_files
from support.models.snapshots import make_snapshot, make_timm

from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.opening import read_facts

LAYERS = {"pooling": ["cls", "mean"], "dense": 8, "normalize": True, "include_prompt": False}
PROMPTS = {"prompts": {"query": "a cat "}, "default_prompt": "query"}
MAKERS = {
    "sentence_transformers": lambda path: make_snapshot(path, "bert", **LAYERS, **PROMPTS),
    "head": lambda path: make_snapshot(path, "bert", "sequence", num_labels=1),
    "images": lambda path: make_snapshot(path, "vit"),
    "towers": lambda path: make_snapshot(path, "siglip"),
    "timm": lambda path: make_timm(path, "resnet10t", 3, layers=[1, 1, 1, 1]),
    "onnx": lambda path: onnx_files.save(onnx_files.image_model("s"), path / "m.onnx").parent,
}


@pytest.mark.parametrize("kind", MAKERS)
def test_facts_come_back_from_json(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m").mkdir()
    path = MAKERS[kind](tmp_path / "m")
    kept = read_facts(path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # nothing can be kept there
    fresh = read_facts(path)
    assert kept == fresh
    assert DirectoryFacts.from_dict(json.loads(json.dumps(fresh.to_dict()))) == fresh
    assert repr(kept) == repr(fresh)  # a named tuple equals a plain one
