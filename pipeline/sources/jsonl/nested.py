"""Columns of JSON lines that are inside objects and lists, as Arrow parses them at once.

Arrow has to know before it parses which names are paths, and only the lines tell: where it cannot
be seen without parsing them, they are parsed one by one.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa

from pipeline.sources.columns.column_path import Step

_STEP = re.compile(r"\.([^.\[]+)|\[(\d{1,9})\]")
_HEAD = re.compile(r"[^.\[]+")
_PLAIN = re.compile(r"[A-Za-z0-9_ .\[\]-]+")
_ESCAPED = re.compile(rb"\\u00[2-7]")
"""How JSON may spell a character of a plain name; it is hardly ever done."""


class Nesting:
    """Which columns of a job may be paths."""

    def __init__(self, names: Sequence[str]) -> None:
        self._steps = {name: steps_of(name) for name in names if "." in name or "[" in name}
        self._marks = {name: _marks(name) for name in self._steps}
        self._are_plain = all(_PLAIN.fullmatch(name) for name in self._steps)

    def names_in(self, data: bytes) -> Collection[str] | None:
        """Return the names that are paths in these lines; None if only parsing them tells.

        A name that stands in none of them is the name of no key, so it is a path; one whose first
        part is the name of no key is none.
        """
        if not self._steps:
            return ()
        if not self._are_plain or _ESCAPED.search(data):
            return None
        nested = []
        for name, steps in self._steps.items():
            if steps is None:
                return None
            if not any(mark in data for mark in self._marks[name]):
                nested.append(name)
            elif b'"%s"' % str(steps[0]).encode() in data:
                return None
        return nested

    def schema(self, schema: pa.Schema, nested: Collection[str]) -> pa.Schema:
        """Return what Arrow parses, given the types of all columns and which of them are paths.

        Raises:
            pa.ArrowInvalid: A path goes on where another one ends.
        """
        if not nested:
            return schema
        tree: dict[Step, Any] = {}
        for field in schema:
            steps = self._steps.get(field.name) if field.name in nested else None
            _put(tree, steps or (field.name,), field.type)
        return pa.schema([(str(name), _type_of(each)) for name, each in tree.items()])


def steps_of(name: str) -> tuple[Step, ...] | None:
    """Divide a path at each dot and bracket; None if it is no path."""
    head = _HEAD.match(name)
    if head is None:
        return None
    steps, at = list[Step]([head[0]]), head.end()
    while at < len(name):
        step = _STEP.match(name, at)
        if step is None:
            return None
        steps.append(step[1] if step[2] is None else int(step[2]))
        at = step.end()
    return tuple(steps)


def _marks(name: str) -> list[bytes]:
    """Return what stands in lines with a key whose name has a dot or bracket of a path."""
    parts = re.findall(r"^[^.\[]+|\.[^.\[]*|\[[^.\[]*", name)
    return [
        f"{before.removeprefix('.')}{after}".encode() for before, after in itertools.pairwise(parts)
    ]


def _put(tree: dict[Step, Any], steps: Sequence[Step], kind: pa.DataType) -> None:
    # The items of a list have one type, so all of them are one branch.
    first, *others = (0 if isinstance(step, int) else step for step in steps)
    below = tree.get(first)
    if not others:
        if below is not None and below != kind:
            raise pa.ArrowInvalid(f"{first} is two columns")
        tree[first] = kind
        return
    if below is None:
        below = tree[first] = {}
    if not isinstance(below, dict):
        raise pa.ArrowInvalid(f"{first} is two columns")
    _put(below, others, kind)


def _type_of(branch: Any) -> pa.DataType:
    if not isinstance(branch, dict):
        return branch
    if 0 in branch:
        if len(branch) > 1:
            raise pa.ArrowInvalid("a list is no object")
        return pa.list_(_type_of(branch[0]))
    return pa.struct([(name, _type_of(each)) for name, each in branch.items()])
