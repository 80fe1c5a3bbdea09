"""Test that a model of several tensors gets the ones that its `forward` takes, by name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import pytest
import torch
import toy_input

from pipeline.core.errors import JobError
from pipeline.inference import output_tree
from pipeline.inference.runtimes import all_runtimes
from pipeline.inference.runtimes.inference_module import InferenceModule, taken_names
from pipeline.inference.runtimes.make_runner import make_runner
from pipeline.inference.runtimes.runtime import missing_reason
from pipeline.preprocessing.table_input import FeatureInput

BATCH = 4
SEEDED = torch.Generator().manual_seed(2)
RUNTIMES = [r.name for r in all_runtimes() if not missing_reason(r, "fp32", is_on_gpu=False)]


class OnlySize(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(1, 2)

    def forward(self, size: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
        return self.head(size) * scale


class Anything(torch.nn.Module):
    def forward(self, **tensors: torch.Tensor) -> dict[str, torch.Tensor]:
        return tensors


class Needs(torch.nn.Module):
    def forward(self, head: torch.Tensor, positions: torch.Tensor, *, mask: Any) -> torch.Tensor:
        return head


class ByPosition(torch.nn.Module):
    def forward(self, head: torch.Tensor, /) -> torch.Tensor:
        return head


class Names(torch.nn.Module):
    input_names = ("head", "mask")

    def forward(self, *tensors: torch.Tensor, **named: torch.Tensor) -> torch.Tensor:
        return named["head"]


class Other(torch.nn.Module):
    def forward(self, x: torch.Tensor | None = None) -> torch.Tensor | None:
        return x


@pytest.mark.parametrize(
    "runtime",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "eager")) for name in RUNTIMES],
)
def test_a_tensor_that_forward_does_not_take_is_left_out(runtime: str):
    module = OnlySize().eval()
    batch = {"head": torch.rand((BATCH, 4), generator=SEEDED), "size": torch.rand((BATCH, 1))}
    with torch.inference_mode():
        expected = module(batch["size"])
        whole = InferenceModule(module, toy_input.ToyInput(), torch.float32)
        example = {name: torch.zeros_like(tensor) for name, tensor in batch.items()}
        outputs = make_runner(runtime, "fp32", lambda: whole, example, num_threads=1).run(batch)
    torch.testing.assert_close(outputs, expected, atol=1e-5, rtol=1e-5)


def test_keywords_of_any_name_get_all_tensors():
    batch = {"head": torch.rand(2, 4), "size": torch.rand(2, 1)}
    outputs = InferenceModule(Anything(), toy_input.ToyInput(), torch.float32).run(batch)
    assert list(outputs) == ["head", "size"]


@pytest.mark.parametrize(
    ("module", "names", "words"),
    [
        (Needs(), ("head", "size"), "of Needs needs positions, mask, and the input has head, size"),
        (Needs(), ("image",), "of Needs needs positions, mask, and the input has image"),
        (Names(), ("head", "size"), "of Names needs mask, and the input has head, size"),
        (Names(), ("image",), "of Names needs mask, and the input has image"),
        (Other(), ("head", "size"), "of Other takes x, and the input has head, size"),
        (ByPosition(), ("head", "size"), "takes no tensor by name, and the input has head, size"),
    ],
)
def test_what_does_not_fit_is_named(module: torch.nn.Module, names: tuple[str, ...], words: str):
    with pytest.raises(JobError) as caught:
        taken_names(module, names)
    assert str(caught.value).endswith(words)


def test_one_tensor_is_given_by_position_whatever_it_is_called():
    for module in (OnlySize(), ByPosition(), Other()):
        assert taken_names(module, ("features",)) == ("features",)
    whole = InferenceModule(Other(), FeatureInput(3), torch.float32)
    assert whole.run({"features": torch.ones(2, 3)}).shape == (2, 3)


def test_a_structure_of_outputs_is_kept_as_text_or_refused():
    rows = torch.arange(6.0).view(2, 3)
    tree = {"z": rows, "a": [rows + 1, (rows + 2,)]}
    leaves, structure = output_tree.tree_flatten(tree)
    kept = output_tree.treespec_loads(output_tree.treespec_dumps(structure))
    assert str(output_tree.tree_unflatten(leaves, kept)) == str(tree)
    halves = output_tree.tree_leaves(output_tree.first_rows(tree, 1))
    assert [tuple(leaf.shape) for leaf in halves] == [(1, 3)] * 3
    _, structure = output_tree.tree_flatten(rows.max(dim=1))  # a named tuple
    with pytest.raises(NotImplementedError):
        output_tree.treespec_dumps(structure)


def test_a_torch_without_a_function_for_structures_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr("torch.utils._pytree.treespec_dumps")
    monkeypatch.delitem(sys.modules, output_tree.__name__)
    with pytest.raises(JobError, match="has no treespec_dumps: install a torch that has"):
        importlib.import_module(output_tree.__name__)
