"""Test that directories are copied once per node, by digest, from every store."""

from __future__ import annotations

import os
import pickle
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.models import onnx_files
from support.models.snapshots import (
    change_json,
    cut_in_two,
    make_snapshot,
    make_timm,
    write_json,
)
from support.servers.object_stores import S3Server

from pipeline.core.errors import JobError
from pipeline.core.node_cache import cached_folder
from pipeline.models.directories.opening import build_module, open_facts, read_facts
from pipeline.models.directories.snapshot import ModelDirectory, local, open_directory
from pipeline.models.tasks.base import TaskSpec
from pipeline.storage.store import Store

NAMES = [
    *("1_Pooling/config.json", "config.json", "model.safetensors", "modules.json"),
    *("tokenizer.json", "tokenizer_config.json"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_snapshot(tmp_path_factory.mktemp("made") / "m", "bert", pooling="mean")


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(made, tmp_path / "m"))


def names(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def embed(folder: Path) -> torch.Tensor:
    facts = read_facts(folder)
    module = build_module(folder, facts, TaskSpec("embed"))
    ids = torch.tensor([[2, 50, 51, 3], [2, 52, 3, 0]])
    with torch.inference_mode():
        return module(input_ids=ids, attention_mask=(ids != 0).long())


def test_the_files_that_are_used_are_copied_and_no_others(path):
    (path / "README.md").write_text("words")
    (path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    (path / "onnx").mkdir()
    (path / "onnx" / "model.onnx").write_bytes(b"?")
    directory, copy = open_directory(str(path))
    assert names(copy) == NAMES
    before = directory.sha256
    (path / "README.md").write_text("other words")
    assert open_directory(str(path)) == (directory, copy)
    assert directory.sha256 == before
    assert pickle.loads(pickle.dumps(directory)) == directory


def test_the_digest_depends_on_names_and_content_alone(path, tmp_path):
    digest = open_directory(str(path))[0].sha256
    other = shutil.copytree(path, tmp_path / "other")
    assert open_directory(str(other))[0].sha256 == digest
    lengths = {"max_seq_length": 9, "do_lower_case": False}
    write_json(Path(other) / "sentence_bert_config.json", lengths)
    assert open_directory(str(other))[0].sha256 != digest


def test_a_worker_copies_for_itself_and_checks_the_digest(path, tmp_path, monkeypatch):
    directory, copy = open_directory(str(path))
    assert local(directory) == copy
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of another node"))
    other = local(directory)
    assert other != copy
    assert names(other) == NAMES

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of a third node"))
    tensors = load_file(path / "model.safetensors")
    tensors["embeddings.word_embeddings.weight"][7] += 1
    save_file(tensors, path / "model.safetensors")
    with pytest.raises(JobError, match=r"changed since the plan: sha256 is .* expected"):
        local(directory)
    assert open_directory(str(path))[0].sha256 != directory.sha256


def test_a_copy_is_made_once_though_asked_for_twice(path, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "of this node"))  # nobody else fills it
    _, copy = open_directory(str(path))
    inode = (copy / "model.safetensors").stat().st_ino
    os.utime(path / "model.safetensors", ns=(1, 1))  # looks changed, holds the same
    _, again = open_directory(str(path))
    assert again == copy
    assert (again / "model.safetensors").stat().st_ino == inode
    assert [path for path in copy.parent.parent.iterdir() if path.name.startswith(".")] == []
    assert cached_folder(copy.parent.name, lambda _: None) == copy.parent


def test_the_links_of_the_hubs_cache_are_followed(path, tmp_path):
    digest = open_directory(str(path))[0].sha256
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    blobs.mkdir(parents=True)
    for index, name in enumerate(names(path)):
        shutil.copy(path / name, blobs / str(index))
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(blobs / str(index), (snapshot / name).parent)
        (snapshot / name).symlink_to(target)
    directory, copy = open_directory(str(snapshot))
    assert directory.sha256 == digest
    assert not any(path.is_symlink() for path in copy.rglob("*"))


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
def test_facts_that_are_kept_as_json_are_those_that_were_read(maker: str, tmp_path: Path):
    (tmp_path / "m").mkdir()
    path = MAKERS[maker](tmp_path / "m")
    fresh = read_facts(path if path.is_dir() else path.parent)
    for kept in (open_facts(str(path), {}, fresh.input)[1] for _ in range(2)):
        assert kept == fresh
        assert repr(kept) == repr(fresh)  # a named tuple equals a plain one


def test_shards_give_what_one_file_gives(path):
    expected = embed(path)
    cut_in_two(path)
    _, copy = open_directory(str(path))
    assert len(names(copy)) == len(NAMES) + 2
    assert torch.equal(embed(copy), expected)


def test_of_a_file_beside_shards_the_library_takes_the_file(path):
    expected, whole = embed(path), (path / "model.safetensors").read_bytes()
    where = cut_in_two(path)
    for file in {*where.values()}:
        tensors = load_file(path / file)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, path / file)
    assert not torch.equal(embed(path), expected)
    (path / "model.safetensors").write_bytes(whole)
    assert torch.equal(embed(open_directory(str(path))[1]), expected)
    (path / where[min(where)]).unlink()  # as the library leaves it when it saves the whole again
    assert torch.equal(embed(open_directory(str(path))[1]), expected)


def test_a_pooler_that_a_classifier_does_not_use_is_no_extra_tensor(tmp_path):
    path = make_snapshot(tmp_path / "m", "bert", "token", num_labels=2)
    tensors = load_file(path / "model.safetensors")
    pooler = {"weight": torch.zeros(32, 32), "bias": torch.zeros(32)}
    tensors |= {f"bert.pooler.dense.{name}": value for name, value in pooler.items()}
    save_file(tensors, path / "model.safetensors")
    facts = read_facts(path)
    build_module(path, facts, TaskSpec("tokens"))


def test_a_config_that_names_no_class_is_of_the_encoder_of_its_type(path):
    expected = embed(path)
    change_json(path / "config.json", architectures=None)
    assert torch.equal(embed(path), expected)


def test_nothing_is_asked_of_the_network(path, monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    _, copy = open_directory(str(path))
    assert embed(copy).shape == (2, 32)


def test_a_directory_in_an_object_store_is_copied(path, s3: S3Server):
    store = Store(s3.uri("models/bert"), s3.storage_options)
    for name in names(path):
        store.put(name, (path / name).read_bytes())
    directory, copy = open_directory(store.uri, store.storage_options)
    assert directory.sha256 == open_directory(str(path))[0].sha256
    assert str(store.storage_options) not in repr(directory)
    assert torch.equal(embed(copy), embed(path))
    unlike = ModelDirectory(store.uri, "0" * 64, store.uri, store.storage_options)
    with pytest.raises(JobError, match="changed since the plan"):
        local(unlike)
    with pytest.raises(JobError, match="no such directory"):
        open_directory(s3.uri("models/none"), s3.storage_options)
