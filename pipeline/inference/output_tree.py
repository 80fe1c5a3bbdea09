"""The structure of a model's outputs: nested dicts, lists and tuples with tensors as leaves.

torch's functions for it have a private name, `torch.utils._pytree`; torch.export and transformers
use them, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils import _pytree

from pipeline.core.errors import JobError


def _function(name: str) -> Any:
    """Return a function of torch.

    Raises:
        JobError: This torch does not have it.
    """
    try:
        return getattr(_pytree, name)
    except AttributeError:
        raise JobError(
            f"torch.utils._pytree of this torch has no {name}: install a torch that has, from 2.9"
        ) from None


TreeSpec = Any
"""A structure, without the leaves."""
tree_flatten = _function("tree_flatten")
tree_leaves = _function("tree_leaves")
tree_map = _function("tree_map")
tree_unflatten = _function("tree_unflatten")
treespec_dumps = _function("treespec_dumps")
treespec_loads = _function("treespec_loads")


def first_rows(outputs: Any, size: int) -> Any:
    """Return the outputs of the first rows of a batch.

    Args:
        outputs: Tensors (B, ...) in any structure, or a list of B mappings, as detectors return.
        size: The number of rows.
    """
    if isinstance(outputs, list) and outputs and isinstance(outputs[0], Mapping):
        return outputs[:size]
    return tree_map(lambda values: values[:size], outputs)
