"""Test an .onnx file as a module: tensors by position or name, any number of rows."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from support.models import onnx_files

from pipeline.core.errors import JobError
from pipeline.inference.runtimes.onnx_runtime import bound
from pipeline.models.directories.onnx.onnx_facts import read_onnx_facts
from pipeline.models.onnx_module import OnnxModule

SEEDED = torch.Generator().manual_seed(4)


def module(model: onnx.ModelProto, folder: Path, *, is_bound: bool = False) -> OnnxModule:
    """Open a model; bound, its session reads and writes tensors where they lie, as on a GPU."""
    path = onnx_files.save(model, folder / "m.onnx")
    if not is_bound:
        return OnnxModule.of(path)
    module = OnnxModule(path, read_onnx_facts(path).module)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    module.open_on_device(bound(session, module.output_names, torch.device("cpu")))
    return module


IN_BOTH_WAYS = pytest.mark.parametrize("is_bound", [False, True], ids=["fed", "bound"])


def by_definition(model: onnx.ModelProto, **feeds: torch.Tensor) -> list[np.ndarray]:
    """What the definition of the operators says, in plain numpy."""
    return ReferenceEvaluator(model).run(None, {k: v.numpy() for k, v in feeds.items()})


@IN_BOTH_WAYS
@pytest.mark.parametrize("num_rows", [1, 3, 4, 9])
@pytest.mark.parametrize("batch", ["batch", 4])
def test_any_number_of_rows_gets_what_the_operators_say(
    tmp_path: Path, batch: int | str, num_rows: int, is_bound: bool
):
    x = torch.rand((num_rows, onnx_files.NUM_FEATURES), generator=SEEDED)
    [expected] = by_definition(onnx_files.features_model(), x=x)
    wrapped = module(onnx_files.features_model(batch), tmp_path, is_bound=is_bound)
    for outputs in (wrapped(x), wrapped(x=x)):
        torch.testing.assert_close(outputs, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


@IN_BOTH_WAYS
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_are_given_with_channels_first(tmp_path: Path, layout: str, is_bound: bool):
    model = onnx_files.image_model(layout=layout)
    x = torch.rand((2, 3, 32, 32), generator=SEEDED)
    turned = x if layout == "NCHW" else x.permute(0, 2, 3, 1)
    logits, means = by_definition(model, x=turned)
    actual = module(model, tmp_path, is_bound=is_bound)(x)
    assert list(actual) == ["logits", "means"]
    torch.testing.assert_close(actual["logits"], torch.from_numpy(logits), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actual["means"], torch.from_numpy(means), atol=1e-4, rtol=1e-4)


def test_one_output_is_a_tensor(tmp_path: Path):
    path = onnx_files.save(onnx_files.image_model(), tmp_path / "m.onnx")
    assert OnnxModule.of(path, ["means"])(torch.zeros((2, 3, 32, 32))).shape == (2, 8)


@IN_BOTH_WAYS
@pytest.mark.parametrize("length", ["length", 12, 7])
def test_texts_are_padded_to_the_length_that_the_file_takes(
    tmp_path: Path, length: int | str, is_bound: bool
):
    ids = torch.randint(0, onnx_files.VOCABULARY, (3, 7), generator=SEEDED)
    mask = (torch.arange(7) < torch.tensor([[7], [2], [5]])).to(torch.int64)
    expected = by_definition(onnx_files.text_model(), input_ids=ids, attention_mask=mask)
    whole = module(onnx_files.text_model(length=length), tmp_path, is_bound=is_bound)
    actual = whole(input_ids=ids, attention_mask=mask)
    for output, values in zip(actual.values(), expected, strict=True):
        torch.testing.assert_close(output, torch.from_numpy(values), atol=1e-5, rtol=1e-5)


def test_tensors_get_the_types_of_the_file(tmp_path: Path):
    x = torch.rand((2, onnx_files.NUM_FEATURES), generator=SEEDED)
    wrapped = module(onnx_files.features_model(), tmp_path)
    torch.testing.assert_close(wrapped(x.double()), wrapped(x))


def test_tensors_that_the_file_does_not_have_are_an_error(tmp_path: Path):
    x = torch.zeros((2, onnx_files.NUM_FEATURES))
    wrapped = module(onnx_files.features_model(), tmp_path)
    for tensors, named in (((), {}), ((x, x), {}), ((x,), {"x": x}), ((), {"y": x})):
        with pytest.raises(TypeError, match=r"m\.onnx takes x; it is given"):
            wrapped(*tensors, **named)


def test_task_raw_gets_all_outputs_and_the_others_the_first(tmp_path: Path):
    path = onnx_files.save(onnx_files.image_model(), tmp_path / "m.onnx")
    facts, x = read_onnx_facts(path).module, torch.zeros((2, 3, 32, 32))
    assert list(OnnxModule.for_task(path, facts, "raw")(x)) == ["logits", "means"]
    assert OnnxModule.for_task(path, facts, "classify")(x).shape == (2, 5)


def test_a_file_with_other_inputs_runs_from_a_factory_as_its_refusal_says(
    tmp_path: Path,
):
    model = onnx_files.two_vectors_model()
    path = onnx_files.save(model, tmp_path / "m.onnx")
    with pytest.raises(JobError, match=r"takes 'left' .*, 'right' .*OnnxModule\.of\(path\)"):
        read_onnx_facts(path)
    left, right = (torch.rand((3, width), generator=SEEDED) for width in (2, 3))
    [expected] = by_definition(model, left=left, right=right)
    actual = OnnxModule.of(path)(right=right, left=left)
    torch.testing.assert_close(actual, torch.from_numpy(expected), atol=1e-5, rtol=1e-5)


def test_it_is_pickled_as_a_path_and_opened_anew(tmp_path: Path):
    wrapped, x = module(onnx_files.features_model(), tmp_path), torch.ones((1, 6))
    expected = wrapped(x)
    data = pickle.dumps(wrapped)
    assert len(data) < 8000
    torch.testing.assert_close(pickle.loads(data)(x), expected)


def test_the_digest_of_all_its_files_is_among_its_tensors(tmp_path: Path):
    model = onnx_files.features_model()
    path = onnx_files.save_apart(model, tmp_path / "m.onnx")
    before = OnnxModule.of(path).get_buffer("sha256")
    assert torch.equal(OnnxModule.of(path).get_buffer("sha256"), before)
    beside = tmp_path / "weights.bin"
    beside.write_bytes(beside.read_bytes()[:-4] + b"\0\0\0\0")
    assert not torch.equal(OnnxModule.of(path).get_buffer("sha256"), before)
