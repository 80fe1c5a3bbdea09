"""The structure of outputs, by torch's private functions."""

from __future__ import annotations

import importlib
import sys
from collections import namedtuple
from typing import Any

import pytest
import torch

from pipeline.core.errors import JobError
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


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_a_tree_comes_back_from_its_leaves_and_its_structure(tree: Any) -> None:
    leaves, structure = output_tree.tree_flatten(tree)
    again = output_tree.tree_unflatten(leaves, structure)
    assert type(again) is type(tree)
    assert str(again) == str(tree)
    halves = output_tree.first_rows(tree, 1)
    assert [tuple(leaf.shape) for leaf in output_tree.tree_leaves(halves)] == [(1, 3)] * len(leaves)


@pytest.mark.parametrize("tree", TREES[:5], ids=range(5))
def test_a_structure_is_kept_as_text(tree: Any) -> None:
    leaves, structure = output_tree.tree_flatten(tree)
    text = output_tree.treespec_dumps(structure)
    again = output_tree.tree_unflatten(leaves, output_tree.treespec_loads(text))
    assert str(again) == str(tree)


def test_a_structure_that_no_text_can_tell_is_refused() -> None:
    _, structure = output_tree.tree_flatten(Pair(A, B))
    with pytest.raises(NotImplementedError):
        output_tree.treespec_dumps(structure)


def test_a_torch_without_one_of_these_functions_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr("torch.utils._pytree.treespec_dumps")
    monkeypatch.delitem(sys.modules, output_tree.__name__)
    with pytest.raises(JobError, match="has no treespec_dumps: install a torch that has"):
        importlib.import_module(output_tree.__name__)
