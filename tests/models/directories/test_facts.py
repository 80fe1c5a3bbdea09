"""What is kept of a directory's facts as JSON is what was read."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.models import onnx_files
from support.models.snapshots import make_snapshot, make_timm

from pipeline.models.directories.opening import open_facts, read_facts

LAYERS = {"pooling": ["cls", "mean"], "dense": 8, "normalize": True, "include_prompt": False}
PROMPTS = {"prompts": {"query": "a cat "}, "default_prompt": "query"}
MAKERS = {
    "sentence_transformers": lambda path: make_snapshot(path, "bert", **LAYERS, **PROMPTS),
    "head": lambda path: make_snapshot(path, "bert", "sequence", num_labels=1),
    "images": lambda path: make_snapshot(path, "vit"),
    "towers": lambda path: make_snapshot(path, "siglip"),
    "timm": lambda path: make_timm(path, "test_resnet", 3, layers=[1, 1, 1, 1]),
    "onnx": lambda path: onnx_files.save(onnx_files.image_model("s"), path / "m.onnx"),
}


@pytest.mark.parametrize("maker", MAKERS)
def test_facts_that_are_kept_are_those_that_were_read(maker: str, tmp_path: Path):
    (tmp_path / "m").mkdir()
    path = MAKERS[maker](tmp_path / "m")
    fresh = read_facts(path if path.is_dir() else path.parent)
    for kept in (open_facts(str(path), {}, fresh.input)[1] for _ in range(2)):
        assert kept == fresh
        assert repr(kept) == repr(fresh)  # a named tuple equals a plain one
