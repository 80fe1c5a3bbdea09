"""Read our own stored documents: unknown fields are ignored, so that documents can grow.

A document's version is raised only if a field changes its meaning or goes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any


def known_fields(document_type: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a JSON document that a dataclass has fields for.

    Raises:
        TypeError: It is no document.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"expected an object, not {type(document).__name__}")
    names = {field.name for field in fields(document_type)}
    return {name: value for name, value in document.items() if name in names}
