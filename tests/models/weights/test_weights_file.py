"""Test that weights files are recognised by name and bytes, and that nothing is run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from support.runs.selection import examples

from pipeline.core.errors import JobError
from pipeline.models.weights.weights import check_weights, read_weights, weights_digest

STATE = {"head.weight": torch.full((5, 3), 2.0), "head.bias": torch.arange(5.0)}
WAY_OUT = 'torch.save(model.state_dict(), "w.pth"), and name the architecture'


def refusal(path: Path, data: bytes | None = None) -> str:
    """Return the driver's message about a file, otherwise an actor's."""
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(JobError) as caught:
        read_weights(str(path), weights_digest(str(path), None, {}), {})
    assert f"{path}: " in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name.replace("__", "/").replace("_dot_", "."), data)
    return buffer.getvalue()


def saved(state: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


class Settings:
    """Content of a checkpoint beside the weights, as training scripts write it."""


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_what_torch_saves_is_fine_and_its_digest_is_that_of_the_file(
    options: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "w.pth").write_bytes(saved(STATE, **options))
    assert weights_digest(str(tmp_path / "w.pth"), None, {}) is not None
    assert weights_digest(str(tmp_path / "w.pth"), "a" * 64, {}) == "a" * 64


def test_safetensors_are_fine_whatever_their_header_length_begins_like(tmp_path: Path) -> None:
    """The first bytes are a length, which may look like the start of anything: `<`, or gzip."""
    for padding in range(0, 512, 8):
        header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
        header = header.ljust(padding + 64)
        data = struct.pack("<Q", len(header)) + header.encode() + bytes(4)
        (tmp_path / "w.safetensors").write_bytes(data)
        digest = weights_digest(str(tmp_path / "w.safetensors"), None, {})
        assert [*read_weights(str(tmp_path / "w.safetensors"), digest, {})] == ["a"]


def test_a_copy_that_was_cut_off_says_so(tmp_path: Path) -> None:
    whole = save({"x": torch.zeros(3_000_000)})
    for data in (whole[:100_000], whole[:20], whole + bytes(7)):
        message = refusal(tmp_path / "w.safetensors", data)
        assert "w.safetensors: is damaged or cut off: " in message
        assert message.endswith("; copy it again")
    message = refusal(tmp_path / "half.pth", saved(STATE)[:-40])
    assert "without its end; copy it again" in message
    assert "is empty (0 bytes); copy it again" in refusal(tmp_path / "empty.pth", b"")


@examples(60)
@given(cut=st.floats(0, 1), seed=st.integers(0, 2**32))
def test_no_damage_makes_the_check_break(cut: float, seed: int) -> None:
    """Each damaged file is refused, or left to the loader: one error of ours, or none."""
    for name, data in (("w.safetensors", save(STATE)), ("w.pth", saved(STATE))):
        damaged = bytearray(data[: int(cut * len(data))])
        for byte in range(seed % 5):
            if damaged:
                damaged[(seed * (byte + 1)) % len(damaged)] ^= 1 + seed % 255
        message = name
        try:
            check_weights(name, bytes(damaged))
        except JobError as error:
            message = str(error)
        assert name in message
        assert "\n" not in message


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"data_offsets": [0, 1e400]}}',
        b'{"a": {"data_offsets": [8, 4]}}',
        b'{"a": [1, 2]}',
        b"{" + b'"a":{' * 20_000,
        b'{"a": NaN',
        b"{\xff\xfe}",
    ],
)
def test_a_header_that_lies_is_refused(header: bytes, tmp_path: Path) -> None:
    data = struct.pack("<Q", len(header)) + header + bytes(4)
    assert "is damaged or cut off: " in refusal(tmp_path / "w.safetensors", data)


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(models.Colours(), torch.zeros(1, 3, 8, 8)), buffer)
    return buffer.getvalue()


def exported() -> bytes:
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(models.Sums(), (torch.zeros(2, 3),)), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (torchscript, "is an archive that torch.save did not make, such as TorchScript"),
        (exported, "is an archive that torch.save did not make, such as TorchScript"),
        (lambda: archive(arr_0_dot_npy=b"x"), "is an archive that torch.save did not make"),
        (lambda: pickle.dumps({"a": 1}), "neither torch.save nor safetensors made it"),
        (lambda: os.urandom(7) + b"\0" + bytes(99), "neither torch.save nor safetensors made it"),
    ],
)
def test_what_torch_did_not_save_is_refused_by_its_bytes_with_the_way_out(
    make: Callable[[], bytes], words: str, tmp_path: Path
) -> None:
    message = refusal(tmp_path / "w.pth", make())
    assert words in message
    assert WAY_OUT in message


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("w.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "git lfs pull"),
        ("w.bin", b"<!DOCTYPE html><html></html>", "is a web page or XML"),
        ("w.bin", save(STATE), "holds safetensors: let its name end in .safetensors"),
        ("w.safetensors", saved(STATE), "is a file of torch.save: let its name end in .pth"),
    ],
)
def test_what_is_no_such_file_is_named(name: str, data: bytes, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path / name, data)


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"model": STATE, "args": Settings()}, f"{__name__}.Settings"),
        (models.Colours(), "models.Colours"),
        (torch.nn.Sequential(), "torch.nn.modules.container.Sequential"),
    ],
)
def test_what_holds_more_than_tensors_is_refused_by_its_name(
    state: object, name: str, tmp_path: Path
) -> None:
    data = saved(state)
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(JobError) as caught:
        read_weights(str(tmp_path / "w.pth"), hashlib.sha256(data).hexdigest(), {})
    assert f"holds more than tensors ({name}), and loading that could run" in str(caught.value)
    assert WAY_OUT in str(caught.value)


class Runs:
    """Runs code when it is unpickled: a call of a function of `builtins`."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (self.code,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_pickle_is_not_run(protocol: int, is_zip: bool, tmp_path: Path) -> None:
    """The header check leaves all classes to torch, of which `weights_only` refuses them."""
    marker, path = tmp_path / "marker", tmp_path / "w.pth"
    state = {**STATE, "more": Runs(f"open({str(marker)!r}, 'w')")}
    data = saved(state, pickle_protocol=protocol, _use_new_zipfile_serialization=is_zip)
    path.write_bytes(data)
    with pytest.raises(JobError, match=r"it holds more than tensors|Unsupported"):
        read_weights(str(path), hashlib.sha256(data).hexdigest(), {})
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("m.pt2", "is an exported program"),
        ("m.PT2", "is an exported program"),
        ("m.torchscript", "is a TorchScript archive"),
        ("m.ts", "is a TorchScript archive"),
        ("m.pkl", "is a pickle, which can run code"),
        ("m.pickle", "is a pickle, which can run code"),
        ("det.onnx", "is a whole model, not weights: name it in model.path"),
        ("m.h5", "is a Keras model"),
        ("m.keras", "is a Keras model"),
        ("last.ckpt", 'torch.save(torch.load(FILE, weights_only=True)["state_dict"], "w.pth")'),
        ("m.npz", "expected one of .safetensors, .pt, .pth, .bin"),
        ("m.pt.gz", "expected one of .safetensors, .pt, .pth, .bin"),
        ("m", "expected one of .safetensors, .pt, .pth, .bin"),
    ],
)
def test_each_kind_of_file_is_named_by_its_name(name: str, words: str, tmp_path: Path) -> None:
    assert words in refusal(tmp_path / name, saved(STATE))


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "snapshot.bin").mkdir()
    (tmp_path / "snapshot.bin" / "x").touch()
    assert "is a folder; name the file in it" in refusal(tmp_path / "snapshot.bin")
    assert "no such file" in refusal(tmp_path / "none.pth")
