"""What is not an ONNX model is refused by its first bytes; every model passes."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from support.models import onnx_files

from pipeline.models.directories.onnx.graph import HEAD_BYTES, can_be_onnx

LARGE = HEAD_BYTES + 1
MODELS = {
    "features": onnx_files.features_model(metadata={"names": "x" * LARGE}),
    "images": onnx_files.image_model(32),
    "texts": onnx_files.text_model(),
}
LIMIT_BYTES = 1 << 31
"""Of the memory of a process: no room for the file beside anything else."""
REFUSED = """
import sys
from pathlib import Path
import onnx
from pipeline.core.errors import JobError
from pipeline.models.directories.opening import open_facts
import resource
resource.setrlimit(resource.RLIMIT_DATA, (int(sys.argv[2]), int(sys.argv[2])))
try:
    open_facts(sys.argv[1], {}, "features")
except JobError as error:
    print(error)
"""


def large(head: bytes) -> bytes:
    """A file that is longer than its head."""
    return head + bytes(LARGE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weights", [0, 2 * LARGE])
def test_a_model_passes(name: str, weights: int) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(MODELS[name])
    if weights:
        numbers = np.zeros(weights, np.uint8)
        model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, "more"))
    data = model.SerializeToString()
    assert can_be_onnx(data[:HEAD_BYTES], max(len(data), LARGE))


def test_fields_of_later_forms_pass_behind_the_first() -> None:
    later = b"\x82\x07\x03abc" + b"\x89\x07" + bytes(8) + b"\x8d\x07" + bytes(4)  # 112, 113, 113
    data = b"\x08\x0a" + later + MODELS["features"].SerializeToString()
    assert can_be_onnx(data[:HEAD_BYTES], len(data))
    assert not can_be_onnx(large(later)[:HEAD_BYTES], LARGE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!doctype html>",
        b"PK\x03\x04",
        b"\x1f\x8b\x08",
        b"GGUF",
        b"\x89HDF\r\n",
        b'{"a": 1}',
        b"\xff" * 20,
        pickle.dumps({"weight": [1.0]}),
        b"\x08\x07\x00",  # ir_version, then no field
        b"\x08\x07\x3b",  # the graph as a group
        b"\x08\x07\x38\x01",  # the graph as a number
        b"\x08\x07\x3a\x05\x00",  # a graph without fields in its five bytes
        b"\x12\xff\xff\xff\xff\x0f",  # a name of 4 GiB
    ],
)
def test_other_bytes_do_not(data: bytes) -> None:
    assert not can_be_onnx(large(data)[:HEAD_BYTES], len(large(data)))


def test_a_small_file_is_left_to_the_parser() -> None:
    assert can_be_onnx(b"<!doctype html>", 15)


def test_garbage_of_two_gib_is_refused_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate((2 << 30) - 1)  # takes no room on the disk
    command: list[Any] = [sys.executable, "-c", REFUSED, str(path), str(LIMIT_BYTES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "is not an ONNX model, or damaged: begins with" in done.stdout, done.stderr
