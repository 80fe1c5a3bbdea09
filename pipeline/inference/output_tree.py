"""The structure of a model's outputs: nested dicts, lists and tuples with tensors as leaves.

torch has functions for it under a private name, `torch.utils._pytree`, which supports more
containers (those that a library has registered). Without that module the functions here do the same
for dicts, lists, tuples and named tuples.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NAMES = ("tree_flatten", "tree_unflatten", "treespec_dumps", "treespec_loads")


def torch_pytree() -> Any | None:
    """Return torch's module if it has all functions that are used here."""
    try:
        module = importlib.import_module("torch.utils._pytree")
    except ImportError:
        return None
    return module if all(hasattr(module, name) for name in _NAMES) else None


TreeSpec = Any
"""A structure, without the leaves."""
_TORCH = torch_pytree()


def tree_flatten(tree: Any) -> tuple[list[Any], TreeSpec]:
    """Return the leaves of a tree, in a fixed order, and its structure."""
    return _TORCH.tree_flatten(tree) if _TORCH else plain_flatten(tree)


def tree_leaves(tree: Any) -> list[Any]:
    """Return the leaves of a tree, in the order of `tree_flatten`."""
    return tree_flatten(tree)[0]


def tree_unflatten(leaves: Sequence[Any], structure: TreeSpec) -> Any:
    """Return the tree of this structure with these leaves."""
    if isinstance(structure, PlainSpec):
        return structure.fill(iter(leaves))
    assert _TORCH is not None, "a structure of torch's comes from torch"
    return _TORCH.tree_unflatten(list(leaves), structure)


def tree_map(function: Callable[[Any], Any], tree: Any) -> Any:
    """Return the tree with `function` applied to each leaf."""
    leaves, structure = tree_flatten(tree)
    return tree_unflatten([function(leaf) for leaf in leaves], structure)


def first_rows(outputs: Any, size: int) -> Any:
    """Return the outputs of the first rows of a batch.

    Args:
        outputs: Tensors (B, ...) of any structure; or a list of B mappings, as detectors give it.
        size: How many rows.
    """
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], Mapping):
        return outputs[:size]
    return tree_map(lambda values: values[:size], outputs)


def treespec_dumps(structure: TreeSpec) -> str:
    """Return a structure as text.

    Raises:
        NotImplementedError: A container in it has no text form.
    """
    if isinstance(structure, PlainSpec):
        return json.dumps({"plain": structure.to_json()})
    assert _TORCH is not None, "a structure of torch's comes from torch"
    text: str = _TORCH.treespec_dumps(structure)
    return text


def treespec_loads(text: str) -> TreeSpec:
    """Return the structure that `treespec_dumps` wrote, with or without torch's functions."""
    document = json.loads(text)
    if isinstance(document, dict) and "plain" in document:
        return PlainSpec.from_json(document["plain"])
    if _TORCH is None:
        raise NoTextForm("this torch cannot read a structure of torch.utils._pytree")
    return _TORCH.treespec_loads(text)


class NoTextForm(NotImplementedError):
    """A structure cannot be written as text, or read from it; torch raises the same class."""


@dataclass(frozen=True)
class PlainSpec:
    """A structure in the form of this module."""

    kind: type | None
    """dict, list, tuple or a named tuple; None: a leaf."""
    keys: tuple[Any, ...] = ()
    """Keys of a dict."""
    children: tuple[PlainSpec, ...] = ()

    def fill(self, leaves: Iterator[Any]) -> Any:
        """Take the leaves of this structure from an iterator; return the tree."""
        if self.kind is None:
            return next(leaves)
        values = [child.fill(leaves) for child in self.children]
        if self.kind is dict:
            return dict(zip(self.keys, values, strict=True))
        return self.kind(*values) if hasattr(self.kind, "_fields") else self.kind(values)

    def to_json(self) -> Any:
        """Return the structure as JSON values.

        Raises:
            NoTextForm: JSON cannot name a container or a key.
        """
        names = {None: None, dict: "dict", list: "list", tuple: "tuple"}
        if self.kind not in names or not all(isinstance(key, str) for key in self.keys):
            raise NoTextForm(f"no text for {self.kind}")
        children = [child.to_json() for child in self.children]
        return [names[self.kind], list(self.keys), children]

    @classmethod
    def from_json(cls, document: Any) -> PlainSpec:
        """Return the structure that `to_json` described."""
        name, keys, children = document
        kinds: Mapping[str | None, type | None]
        kinds = {None: None, "dict": dict, "list": list, "tuple": tuple}
        return cls(kinds[name], tuple(keys), tuple(map(cls.from_json, children)))


def plain_flatten(tree: Any) -> tuple[list[Any], PlainSpec]:
    """Return the leaves and the structure of a tree without torch's functions."""
    is_named = isinstance(tree, tuple) and hasattr(tree, "_fields")
    if isinstance(tree, dict):
        parts = [plain_flatten(value) for value in tree.values()]
    elif type(tree) in (list, tuple) or is_named:
        parts = [plain_flatten(value) for value in tree]
    else:
        return [tree], PlainSpec(None)
    keys = tuple(tree) if isinstance(tree, dict) else ()
    kind = dict if isinstance(tree, dict) else type(tree)
    leaves = [leaf for found, _ in parts for leaf in found]
    return leaves, PlainSpec(kind, keys, tuple(structure for _, structure in parts))
