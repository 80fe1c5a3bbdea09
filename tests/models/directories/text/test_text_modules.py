"""Modules of texts stay exportable: one graph for any number of texts of any length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models.snapshots import make_snapshot

from pipeline.models.directories.build import build_module
from pipeline.models.directories.opening import read_facts
from pipeline.models.tasks.base import TaskSpec

POOLED = {"pooling": ("mean", "lasttoken"), "normalize": True}
NLI = {"id2label": {0: "contradiction", 1: "neutral", 2: "entailment"}}
PROMPTS = ("the cat", "a long way home by the river")
Run = Callable[[dict[str, np.ndarray]], np.ndarray]


def batch(names: tuple[str, ...], num_texts: int, num_tokens: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(4, 60, (num_texts, num_tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[0, num_tokens // 2 :] = 0
    types = torch.zeros_like(ids)
    types[:, num_tokens // 2 :] = 1
    found = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    return {name: found[name] for name in names}


def in_openvino(module: torch.nn.Module, example: dict[str, torch.Tensor], _: Path) -> Run:
    import openvino

    shapes = [(name, [-1, -1], np.int64) for name in example]
    converted = openvino.convert_model(module, example_input=example, input=shapes)
    compiled = openvino.compile_model(
        converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return lambda inputs: compiled(inputs)[0]


def in_onnxruntime(module: torch.nn.Module, example: dict[str, torch.Tensor], folder: Path) -> Run:
    import onnxruntime

    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    program = torch.onnx.export(
        module,
        kwargs=example,
        dynamo=True,
        dynamic_shapes=dict.fromkeys(example, sizes),
        input_names=list(example),
        verbose=False,
    )
    program.save(folder / "m.onnx")
    session = onnxruntime.InferenceSession(folder / "m.onnx", providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "export", [pytest.param(in_openvino, marks=pytest.mark.slow), in_onnxruntime]
)
@pytest.mark.parametrize(
    ("family", "head", "options", "prompts"),
    [
        ("bert", "sequence", {}, ()),
        pytest.param("modernbert", "none", POOLED, (), marks=pytest.mark.slow),
        pytest.param("bert", "none", POOLED, PROMPTS, marks=pytest.mark.slow),
        pytest.param("bert", "sequence", NLI, PROMPTS, marks=pytest.mark.slow),
    ],
)
def test_an_exported_module_gives_the_same(
    family: str, head: str, options: Any, prompts: tuple[str, ...], export: Any, tmp_path: Path
):
    path = make_snapshot(tmp_path / "m", family, head, **options)
    facts = read_facts(path)
    assert facts.text is not None
    task = TaskSpec("zero_shot" if prompts else facts.tasks[0], prompts=prompts)
    module = build_module(path, facts, task, {})
    names = facts.text.tensor_names[: 2 if prompts else None]
    run: Run = export(module, batch(names, 2, 12), tmp_path)
    for num_texts, num_tokens in ((2, 12), (3, 7), (5, 31)):
        inputs = batch(names, num_texts, num_tokens)
        with torch.inference_mode():
            expected = module(**inputs).numpy()
        found = run({name: tensor.numpy() for name, tensor in inputs.items()})
        np.testing.assert_allclose(found, expected, atol=1e-3)
