"""1,000 damaged .onnx files, other ones each time (`make long`), by the real command.

Bytes are damaged, or values in the graph: operators, attributes, shapes, names, types. Whatever a
file says, a run refuses it in one line (exit 2) or gets as far as an address where there is no Ray
(exit 7), in bounded memory, and no escape sequence of a name reaches the terminal.
PIPELINE_FUZZ_SEED repeats a seed that failed.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onnx import TensorProto
from support.inputs.damage import damaged
from support.models import onnx_files
from support.runs.cli import environment, write_job
from support.servers.commandserver import OF_CHECKS, CommandServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

NUM_FILES = 1_000
SEED = int(os.environ.get("PIPELINE_FUZZ_SEED") or secrets.randbits(32))
MAX_MORE_BYTES = 512 << 20
REFUSED, NO_RAY = 2, 7
ESCAPE = "\x1b]0;TITLE\x07\n2026-01-01 ERROR forged line"
NUMBERS = (-(2**63), -1, 0, 1, 2, 3, 7, 2**31, 2**40, 2**62)
OPERATORS = ("Loop", "If", "Pad", "Expand", "Tile", "Reshape", "Cast", "RandomNormal", "NoSuch", "")
SOURCE = [f"f{number}" for number in range(onnx_files.NUM_FEATURES)]


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    cache = {"XDG_CACHE_HOME": str(tmp_path_factory.mktemp("cache"))}
    with CommandServer(environment(cache), ("ray.data", *OF_CHECKS), is_limited=True) as forked:
        yield forked


def test_damaged_files_are_refused_in_one_line_or_go_on(commands: CommandServer, tmp_path: Path):
    rng = random.Random(SEED)
    columns = {name: pa.array([0.5, 1.0], pa.float32()) for name in SOURCE}
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "in" / "s.parquet")
    source = {"uri": str(tmp_path / "in"), "format": "parquet", "features": SOURCE}
    codes = []
    for number in range(NUM_FILES):
        model = tmp_path / "model.onnx"
        model.write_bytes(damaged_file(rng))
        job = write_job(
            tmp_path / "job.yaml",
            source,
            str(tmp_path / "out"),
            model={"path": str(model), "task": rng.choice(("classify", "regress", "embed"))},
            transform=None,
        )
        ended = commands.run(*("run", job, "--date", "2026-11-24", "--address", "127.0.0.1:1"))
        what = f"seed {SEED}, file {number}: exit {ended.code}\n{ended.stderr}"
        assert ended.code in (REFUSED, NO_RAY), what
        assert ended.more_bytes < MAX_MORE_BYTES, f"{ended.more_bytes / 2**20:.0f} MiB, {what}"
        assert "\x1b" not in ended.stderr, what
        lines = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, what
        assert not any(line.startswith("2026-01-01") for line in ended.stderr.splitlines()), what
        codes.append(ended.code)
    assert {*codes} == {REFUSED, NO_RAY}, "most damage matters, and some does not"


def damaged_file(rng: random.Random) -> bytes:
    make: Callable[[], Any] = rng.choice(
        (
            onnx_files.features_model,
            lambda: onnx_files.features_model(softmax=True),
            onnx_files.classifier,
            lambda: onnx_files.classifier((3, 5, 8), zipped=None),
        )
    )
    model = make()
    if rng.random() < 0.4:
        return damaged(model.SerializeToString(), rng)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(CHANGES)(model, rng)
    return bytes(model.SerializeToString())


def _operator(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).op_type = rng.choice(OPERATORS)


def _domain(model: onnx.ModelProto, rng: random.Random) -> None:
    rng.choice(model.graph.node).domain = rng.choice(("ai.onnx.ml", "com.microsoft", "x", ESCAPE))


def _name(model: onnx.ModelProto, rng: random.Random) -> None:
    node = rng.choice(model.graph.node)
    node.name = ESCAPE
    if rng.random() < 0.5:
        node.output[0] = rng.choice((ESCAPE, "", "logits", "x"))


def _wiring(model: onnx.ModelProto, rng: random.Random) -> None:
    names = [name for node in model.graph.node for name in (*node.input, *node.output)]
    node = rng.choice(model.graph.node)
    node.input[rng.randrange(len(node.input))] = rng.choice(names)


def _attribute(model: onnx.ModelProto, rng: random.Random) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    attribute = (
        rng.choice(attributes) if attributes else model.graph.node[0].attribute.add(name="axis")
    )
    attribute.type = rng.choice((1, 2, 3, 6, 7, 8))
    attribute.i = rng.choice(NUMBERS)
    attribute.f = rng.choice((float("nan"), float("inf"), 1e38))
    attribute.ints.extend(rng.choices(NUMBERS, k=rng.randrange(4)))


def _dimension(model: onnx.ModelProto, rng: random.Random) -> None:
    ends = [*model.graph.input, *model.graph.output]
    shape = rng.choice(ends).type.tensor_type.shape
    if shape.dim and rng.random() < 0.8:
        rng.choice(shape.dim).dim_value = rng.choice(NUMBERS)
    else:
        shape.dim.add(dim_value=rng.choice(NUMBERS))


def _type(model: onnx.ModelProto, rng: random.Random) -> None:
    ends = [*model.graph.input, *model.graph.output]
    kinds = (TensorProto.STRING, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.BOOL, 99)
    rng.choice(ends).type.tensor_type.elem_type = rng.choice(kinds)


def _initializer(model: onnx.ModelProto, rng: random.Random) -> None:
    if not model.graph.initializer:
        return
    tensor = rng.choice(model.graph.initializer)
    tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice(NUMBERS)


def _opset(model: onnx.ModelProto, rng: random.Random) -> None:
    model.opset_import[0].version = rng.choice(NUMBERS)


CHANGES = (
    *(_operator, _domain, _name, _wiring, _attribute, _dimension, _type, _initializer, _opset),
)
