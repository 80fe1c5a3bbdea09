"""Read and write the JSON documents that we store: sealed, and open to new fields.

Unknown fields are ignored, so documents can grow. The version of a document is raised only if a
field changes its meaning or disappears. A document that decides what is published is sealed: it
holds a digest of itself, so a damaged one is never believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

_SEAL = "sha256"


def sealed(document: Mapping[str, Any]) -> bytes:
    """Return a document as JSON, with a digest of itself."""
    return json.dumps({**document, _SEAL: _digest(document)}, indent=1).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """Undo `sealed`; a document without a digest, from an older version, is taken as it is.

    Raises:
        ValueError, TypeError: It is damaged, or not a document.
        RecursionError: It is nested too deeply.
    """
    document = json.loads(data)
    if not isinstance(document, dict):
        raise TypeError(f"expected an object, not {type(document).__name__}")
    seal = document.pop(_SEAL, None)
    if seal is not None and seal != _digest(document):
        raise ValueError("its digest is of other content")
    return document


def _digest(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document).encode()).hexdigest()


def known_fields(document_type: type, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a JSON document for which a dataclass has fields.

    Raises:
        TypeError: It is not a document.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"expected an object, not {type(document).__name__}")
    names = {field.name for field in fields(document_type)}
    return {name: value for name, value in document.items() if name in names}
