"""Test that an .onnx file names its input and tasks, and that unsafe files are refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from support.models import onnx_files
from support.models.library_cases import FEATURES, Case, best, published
from support.models.onnx_files import FLOAT, INT64, make_model, save, value

from pipeline.core.errors import JobError
from pipeline.models.directories.facts import DirectoryFacts
from pipeline.models.directories.onnx import graph as onnx_graph
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts

FOREIGN = (("", 17), ("my.ops", 1))


def read(model: onnx.ModelProto, folder: Path) -> DirectoryFacts:
    return read_onnx_facts(save(model, folder / "m.onnx"))


def refusal(model: onnx.ModelProto | bytes, folder: Path) -> str:
    path = folder / "m.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    with pytest.raises(JobError) as caught:
        read_onnx_facts(path)
    text = str(caught.value)
    assert text.startswith("model.path = m.onnx: ")
    assert "\n" not in text
    return text


def passed_on(inputs: list[Any], **more: Any) -> onnx.ModelProto:
    """A model that gives the shape of its first input."""
    node = helper.make_node("Shape", [inputs[0].name], ["out"])
    return make_model([node], inputs, [value("out", INT64, None)], **more)


def test_features(tmp_path: Path):
    facts = read(onnx_files.features_model(), tmp_path)
    assert (facts.format_name, facts.input, facts.tasks[0]) == ("onnx", "features", "classify")
    assert facts.module.inputs == (("x", "float32", ("batch", 6)),)
    assert facts.embedding_dim == 5
    assert (facts.module.batch_size, facts.module.output) == (None, "logits")
    assert facts.notes == (
        "m.onnx: takes 'x' float32 (batch, 6)",
        "m.onnx: gives 'logits' float32 (batch, 5); tasks take 'logits'",
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_have_the_axes_of_either_order(tmp_path: Path, layout: str):
    facts = read(onnx_files.image_model(32, layout=layout), tmp_path)
    assert (facts.input, facts.module.layout) == ("image", layout)
    assert (facts.images, facts.transform) == ((3, 32, 32), None)
    free = read(onnx_files.image_model("s", layout=layout), tmp_path)
    assert free.images == (3, None, None)


def test_texts(tmp_path: Path):
    facts = read(onnx_files.text_model(), tmp_path)
    assert (facts.input, facts.tasks[0], facts.embedding_dim) == ("text", "embed", 8)
    assert facts.module.max_tokens is None
    assert read(onnx_files.text_model(length=16), tmp_path).module.max_tokens == 16


def test_a_fixed_number_of_rows_is_noted(tmp_path: Path):
    facts = read(onnx_files.features_model(4), tmp_path)
    assert facts.module.batch_size == 4
    assert "m.onnx: takes exactly 4 rows at once" in facts.notes


def test_a_softmax_at_the_end_is_noted(tmp_path: Path):
    facts = read(onnx_files.features_model(softmax=True), tmp_path)
    assert facts.ends_in == "softmax"
    assert "m.onnx: its output is a softmax already" in facts.notes


@pytest.mark.parametrize(
    ("key", "text", "labels"),
    [
        ("labels", '["cat", "dog"]', ("cat", "dog")),
        ("names", "{0: 'cat', 1: 'dog'}", ("cat", "dog")),
        ("id2label", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
        ("names", "{0: 'cat', 2: 'dog'}", None),
        ("names", "__import__('os').abort()", None),
        ("names", "[" * 100_000, None),
        ("names", "[1, 2]", None),
        ("author", '["cat", "dog"]', None),
    ],
)
def test_class_names_come_from_the_metadata(
    tmp_path: Path, key: str, text: str, labels: tuple[str, ...] | None
):
    assert read(onnx_files.features_model(metadata={key: text}), tmp_path).labels == labels


def test_initializers_among_the_inputs_are_no_inputs(tmp_path: Path):
    model = onnx_files.features_model()
    model.graph.input.append(value("w", FLOAT, [6, 8]))
    assert [tensor.name for tensor in read(model, tmp_path).module.inputs] == ["x"]


def model_of(*nodes: Any, initializers: Sequence[Any] = (), **more: Any) -> onnx.ModelProto:
    """A model from `x` (b, 3) to `out` (b, 3)."""
    ends = [value("x", FLOAT, ["b", 3])], [value("out", FLOAT, ["b", 3])]
    return make_model(nodes, *ends, initializers, **more)


def function_of(name: str, node: Any) -> Any:
    """A function of the file, `my.ops`, that calls an operator: a -> b."""
    imports = [helper.make_opsetid(*opset) for opset in FOREIGN]
    return helper.make_function("my.ops", name, ["a"], ["b"], [node], imports)


def called(name: str, ends: tuple[str, str] = ("x", "out"), domain: str = "my.ops") -> Any:
    return helper.make_node(name, [ends[0]], [ends[1]], domain=domain)


def branching(node: Any, *initializers: Any) -> list[Any]:
    """Nodes of which one has a graph inside with an operator that makes `in`."""
    inner = helper.make_graph([node], "inner", [], [value("in", FLOAT, None)], initializers)
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", 9, [], [1]))
    return [yes, helper.make_node("If", ["yes"], ["out"], then_branch=inner, else_branch=inner)]


def test_operators_that_onnxruntime_brings_and_functions_of_the_file_are_taken(tmp_path: Path):
    brought = model_of(
        called("Gelu", domain="com.microsoft"), opsets=[("", 17), ("com.microsoft", 1)]
    )
    assert read(brought, tmp_path).module.output_names == ("out",)
    function = function_of("Twice", helper.make_node("Add", ["a", "a"], ["b"]))
    model = model_of(called("Twice"), functions=[function], opsets=FOREIGN)
    assert read(model, tmp_path).module.output_names == ("out",)


def test_a_function_that_calls_itself_is_refused(tmp_path: Path):
    pairs = (("Ping", "Pong"), ("Pong", "Ping"))
    functions = [function_of(name, called(other, ("a", "b"))) for name, other in pairs]
    message = refusal(model_of(called("Ping"), functions=functions, opsets=FOREIGN), tmp_path)
    assert "recursive" in message


@pytest.mark.parametrize("place", ["graph", "subgraph", "function"])
def test_operators_that_need_a_library_of_their_own_are_refused(tmp_path: Path, place: str):
    opsets = [*FOREIGN, ("other.ops", 1)]
    if place == "graph":
        model = model_of(called("Run", domain="other.ops"), opsets=opsets)
    elif place == "subgraph":
        nodes = branching(called("Run", ("x", "in"), "other.ops"))
        model = model_of(*nodes, opsets=opsets)
    else:
        function = function_of("Outer", called("Run", ("a", "b"), "other.ops"))
        model = model_of(called("Outer"), functions=[function], opsets=opsets)
    message = refusal(model, tmp_path)
    assert "onnxruntime does not open it: " in message
    assert "other.ops" in message


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("RandomNormalLike", ["logits"], ["more"], seed=1.0)],
        [
            helper.make_node("Constant", [], ["on"], value=helper.make_tensor("t", 9, [], [1])),
            helper.make_node("Dropout", ["logits", "", "on"], ["more"]),
        ],
    ],
    ids=["noise with a seed", "dropout in training"],
)
def test_a_file_that_draws_random_numbers_is_refused_by_its_predictions(
    tmp_path: Path, nodes: list[Any]
):
    model = onnx_files.features_model()
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = FEATURES.shape[1]
    model.graph.initializer[0].CopyFrom(onnx_files.weights("w", FEATURES.shape[1], 8))
    model.graph.node.extend([*nodes, helper.make_node("Add", ["logits", "more"], ["noisy"])])
    model.graph.output[0].name = "noisy"
    job = {"task": "classify", "labels": ["a", "b", "c", "d", "e"]}
    case = Case(lambda _: tmp_path, lambda *_: [], best, job, "features")
    with pytest.raises(JobError, match="differed each time: the model is not determin"):
        published(case, save(model, tmp_path / "m.onnx"))


def unfed_zip_map() -> bytes:
    model = onnx_files.classifier()
    for node in model.graph.node:
        if node.op_type == "ZipMap":
            del node.input[:]
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "it has no graph"),
        (b"<!doctype html>", "is not an ONNX model, or damaged"),
        (b"version https://git-lfs.github.com/spec/v1", "run git lfs pull"),
        (onnx_files.features_model().SerializeToString()[:200], "is not an ONNX model, or damaged"),
        (b"\x80\x04\x95", "is not an ONNX model, or damaged"),
        (
            onnx_files.features_model().SerializeToString().replace(b"logits", b"logi\xf4s"),
            "does not open it: 'utf-8' codec can't decode byte 0xf4",
        ),
        (unfed_zip_map(), "onnxruntime does not open it: "),
    ],
)
def test_other_bytes_are_refused(tmp_path: Path, data: bytes, words: str):
    assert words in refusal(data, tmp_path)


def test_a_file_above_the_limit_is_not_read(tmp_path: Path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(onnx_graph.MAX_FILE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(JobError, match="protobuf reads at most 2147483647"):
        read_onnx_facts(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([value("sound", FLOAT, ["b", 80, "t"])], "takes 'sound' float32 (b, 80, t); an image is"),
        ([value("a", FLOAT, ["b", 3]), value("c", FLOAT, ["b", 4])], "'a' float32 (b, 3), 'c'"),
        ([value("x", FLOAT, None)], "takes 'x' float32 (?)"),
        ([value("x", FLOAT, ["b", 4, 28, 28])], "takes 'x' float32 (b, 4, 28, 28)"),
        (
            [value("input_ids", INT64, ["b", "l"]), value("pixels", FLOAT, ["b", 3, 32, 32])],
            "'input_ids' int64 (b, l), 'pixels'",
        ),
        ([value("x", FLOAT, ["b", 2, 480, 640])], "an image is one float (B, 3, H, W)"),
        (
            [value("input_ids", INT64, [2, "l"]), value("attention_mask", INT64, ["b", "l"])],
            "axis 0 of all inputs must be the same",
        ),
        ([value("name", onnx.TensorProto.STRING, ["b", 2])], "takes 'name' text (b, 2)"),
    ],
)
def test_other_inputs_are_refused_with_what_would_be_right(
    tmp_path: Path, inputs: list[Any], words: str
):
    assert words in refusal(passed_on(inputs), tmp_path)


@pytest.mark.parametrize("length", [2**31, 2**40, 0])
def test_an_axis_that_no_row_could_have_is_unknown(tmp_path: Path, length: int):
    """Arrow's lists have at most 2**31 - 1 values."""
    node = helper.make_node("Identity", ["x"], ["out"])
    ends = (value(name, FLOAT, ["batch", length]) for name in ("x", "out"))
    assert read(make_model([node], *([end] for end in ends)), tmp_path).embedding_dim is None


def test_outputs_that_are_no_numbers_are_left_out_or_refused(tmp_path: Path):
    model = onnx_files.features_model()
    names = helper.make_tensor("name", onnx.TensorProto.STRING, [1], [b"a"])
    model.graph.node.append(helper.make_node("Constant", [], ["names"], value=names))
    model.graph.output.insert(0, value("names", onnx.TensorProto.STRING, [1]))
    assert read(model, tmp_path).module.output_names == ("logits",)
    del model.graph.output[1]
    assert "none of these is a tensor of numbers" in refusal(model, tmp_path)
