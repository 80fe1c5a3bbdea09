"""What a value of a record may be, in one canonical form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["string", "integer", "number", "boolean", "array", "object"]
NULL = {"type": "null"}
BOUNDS: Mapping[str, tuple[str, str]] = {
    "string": ("minLength", "maxLength"),
    "integer": ("minimum", "maximum"),
    "number": ("minimum", "maximum"),
    "array": ("minItems", "maxItems"),
}
"""Kind -> the keywords of its least and its most."""


@dataclass(frozen=True)
class Node:
    """One value of a record."""

    kind: Kind
    is_nullable: bool = False
    values: tuple[Any, ...] = ()
    """The only ones that it may have; (): any."""
    least: float | None = None
    """The smallest number, the fewest characters or items; None: any."""
    most: float | None = None
    items: Node | None = None
    fields: tuple[tuple[str, Node], ...] = ()
    """Of an object: name -> value, in the order in which they are written."""
    required: frozenset[str] = frozenset()

    def schema(self) -> dict[str, Any]:
        """Return the canonical JSON schema."""
        found: dict[str, Any] = {"type": self.kind}
        if self.values:
            found |= {"enum": [*self.values]} if len(self.values) > 1 else {"const": self.values[0]}
        elif self.kind in BOUNDS:
            bounds = zip(BOUNDS[self.kind], (self.least, self.most), strict=True)
            found |= {name: bound for name, bound in bounds if bound is not None}
        if self.items is not None:
            found["items"] = self.items.schema()
        if self.kind == "object":
            found["properties"] = {name: node.schema() for name, node in self.fields}
            found["required"] = [name for name, _ in self.fields if name in self.required]
            found["additionalProperties"] = False
        return {"anyOf": [found, NULL]} if self.is_nullable else found

    def below(self) -> Iterator[Node]:
        """Yield this and all values inside of it."""
        yield self
        for node in (*([self.items] if self.items else []), *(node for _, node in self.fields)):
            yield from node.below()
