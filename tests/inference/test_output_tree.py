"""The structure of outputs: torch's private functions and the plain ones agree."""

from __future__ import annotations

import json
from collections import namedtuple
from typing import Any

import pytest
import torch

from pipeline.inference import output_tree

Pair = namedtuple("Pair", "logits hidden")
A, B, C = (torch.full((2, 3), float(number)) for number in range(3))
TREES: list[Any] = [
    A,
    (A, B),
    [A],
    {"logits": A, "boxes": [B, (C,)]},
    {"z": A, "a": B},
    Pair(A, {"last": B}),
    (),
]


@pytest.fixture(params=["torch", "plain"])
def _functions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert output_tree.torch_pytree() is not None, "torch has no torch.utils._pytree any more"
    if request.param == "plain":
        monkeypatch.setattr(output_tree, "_TORCH", None)


@pytest.mark.usefixtures("_functions")
@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_a_tree_comes_back_from_its_leaves_and_its_structure(tree: Any) -> None:
    leaves, structure = output_tree.tree_flatten(tree)
    again = output_tree.tree_unflatten(leaves, structure)
    assert type(again) is type(tree)
    assert str(again) == str(tree)
    halves = output_tree.tree_map(lambda values: values[:1], tree)
    assert [tuple(leaf.shape) for leaf in output_tree.tree_leaves(halves)] == [(1, 3)] * len(leaves)
    assert list(map(id, output_tree.plain_flatten(tree)[0])) == list(map(id, leaves))


@pytest.mark.usefixtures("_functions")
@pytest.mark.parametrize("tree", TREES[:5], ids=range(5))
def test_a_structure_is_kept_as_text(tree: Any) -> None:
    leaves, structure = output_tree.tree_flatten(tree)
    text = output_tree.treespec_dumps(structure)
    again = output_tree.tree_unflatten(leaves, output_tree.treespec_loads(text))
    assert str(again) == str(tree)


def test_a_structure_that_no_text_can_tell_is_refused() -> None:
    _, structure = output_tree.plain_flatten(Pair(A, B))
    with pytest.raises(NotImplementedError):
        output_tree.treespec_dumps(structure)


def test_a_text_of_torchs_is_not_read_without_torchs_functions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = output_tree.treespec_dumps(output_tree.tree_flatten((A, B))[1])
    assert isinstance(json.loads(text), list)
    monkeypatch.setattr(output_tree, "_TORCH", None)
    with pytest.raises(NotImplementedError):
        output_tree.treespec_loads(text)
