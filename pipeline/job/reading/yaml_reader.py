"""Read the YAML of a job file: the core types of YAML 1.2, unique keys, limited size.

`true` and `false` are the only booleans: `on`, `off`, `yes` and `no` are strings, and so are dates
and times. PyYAML parses; its nodes become values here, because its own constructors expand all
aliases, use the types of YAML 1.1 and can exhaust the stack.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from pipeline.core.errors import JobError

Path = tuple[str | int, ...]
"""The place of a value: keys, and positions in lists."""

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 100_000
"""Values, lists and mappings; those behind an alias count each time."""
MAX_CHARS = 4 * MAX_BYTES
_MAX_DIGITS = 400

_TAG = "tag:yaml.org,2002:"
_STR, _INT, _FLOAT, _BOOL, _NULL = (_TAG + name for name in ("str", "int", "float", "bool", "null"))
_SEQ, _MAP, _MERGE = _TAG + "seq", _TAG + "map", _TAG + "merge"
_CORE = (
    (_NULL, re.compile(r"~|null|Null|NULL|")),
    (_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE")),
    (_INT, re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (_FLOAT, re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")),
    (_FLOAT, re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")),
    (_MERGE, re.compile(r"<<")),
)
"""The core schema of YAML 1.2, and YAML 1.1's merge key."""
# Quotations of the parser: they may be of a password that begins with * or !.
_QUOTED = re.compile(r"'(?!<)(?:\\.|[^'\\]){3,}'|\"(?:\\.|[^\"\\]){3,}\"")
_SURROGATES = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Problem:
    """One error of a job."""

    path: Path
    text: str
    line: int | None = None
    """The line, unless it is that of `path`."""


@dataclass(frozen=True)
class Document:
    """The value of a YAML document, with the lines of its parts."""

    value: Any
    root: yaml.Node | None = None
    problems: tuple[Problem, ...] = ()

    def line(self, path: Path) -> tuple[int, int | None]:
        """Return how many parts of a path exist, and the line of the last of them."""
        node, line = self.root, None
        for depth, part in enumerate(path):
            child = _child(node, part)
            if child is None:
                return depth, line
            line, node = child
        return len(path), line


def read_yaml(path: str) -> Document:
    """Read a mapping from a file; errors do not quote its text.

    Raises:
        JobError: It cannot be read, or is not a mapping in plain YAML.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise JobError(f"{path}: cannot read the job file: {error.strerror}") from None
    except ValueError:  # a NUL in the name
        raise JobError(f"{path}: cannot read the job file: invalid file name") from None
    if len(data) > MAX_BYTES:
        raise JobError(f"{path}: a job file may have at most {MAX_BYTES >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise JobError(f"{path}: cannot read the job file: line {line} is not UTF-8 text") from None
    try:
        document = parse(text)
    except ValueError as error:
        raise JobError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(document.value, dict):
        raise JobError(f"{path}: a job file must be a mapping with source, model and sink")
    return document


def parse(text: str) -> Document:
    """Parse one document.

    Raises:
        ValueError: It is not YAML, or exceeds the limits; the message does not quote it.
    """
    try:
        root = _Composer(text).get_single_node()
        builder = _Builder()
        value = None if root is None else builder.build(root, ())
    except yaml.YAMLError as error:
        raise ValueError(_yaml_problem(error, text)) from None
    return Document(value, root, tuple(builder.problems))


def parse_value(text: str) -> Any:
    """Parse one value.

    Raises:
        ValueError: It is not plain YAML.
    """
    document = parse(text)
    if document.problems:
        raise ValueError(document.problems[0].text)
    return document.value


class _Composer(yaml.SafeLoader):
    """PyYAML's parser and composer, with limits and the core schema."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._num_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._num_nodes += 1
        if self._depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise _too_deep(mark) if self._depth > MAX_DEPTH else _too_large(mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is not yaml.ScalarNode:
            return _SEQ if kind is yaml.SequenceNode else _MAP
        if not implicit[0]:  # in quotes
            return _STR
        return next((tag for tag, pattern in _CORE if pattern.fullmatch(value)), _STR)


class _Builder:
    """Turns nodes into plain values, and collects the problems of single ones."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._num_nodes = self._num_chars = 0
        self._open: set[int] = set()

    def build(self, node: yaml.Node, path: Path) -> Any:
        """Return the value of a node.

        Raises:
            yaml.MarkedYAMLError: It contains itself, or is too large with its aliases expanded.
        """
        self._num_nodes += 1
        if isinstance(node, yaml.ScalarNode):
            self._num_chars += len(node.value)
        if self._num_nodes > MAX_NODES or self._num_chars > MAX_CHARS:
            raise _too_large(node.start_mark)
        if len(path) > MAX_DEPTH:
            raise _too_deep(node.start_mark)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise _marked("an alias refers to a value that contains it", node.start_mark)
        self._open.add(id(node))
        try:
            return self._collection(node, path)
        finally:
            self._open.discard(id(node))

    def _collection(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.SequenceNode) and node.tag == _SEQ:
            return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and node.tag == _MAP:
            return self._mapping(node, path)
        self._tagged(node, path)
        return None

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._problem("a key must be a string, not a list or a mapping", key, path)
            elif key.tag == _MERGE:
                continue
            elif (name := joined(key.value)) in values:
                is_open = "storage_options" not in path
                shown = f"the key {name}" if is_open else "a key"
                self._problem(f"{shown} occurs twice", key, path)
            else:
                values[name] = self.build(item, (*path, name))
        for merged in _merged(node):
            mapping = self.build(merged, path)
            if not isinstance(mapping, dict):
                self._problem("<< accepts only mappings", merged, path)
                continue
            values = {**mapping, **values}
        return values

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text = node.value
        if node.tag in (_STR, _MERGE):
            return joined(text)
        if not any(tag == node.tag and pattern.fullmatch(text) for tag, pattern in _CORE):
            self._tagged(node, path)
            return None
        if node.tag == _INT:
            if len(text) > _MAX_DIGITS:
                self._problem(f"a number of {len(text)} digits", node, path)
                return None
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if node.tag == _FLOAT:
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text.lower() == "true" if node.tag == _BOOL else None

    def _tagged(self, node: yaml.Node, path: Path) -> None:
        text = "tags are not supported; quote strings that begin with !"
        self._problem(text, node, path)

    def _problem(self, text: str, node: yaml.Node, path: Path) -> None:
        self.problems.append(Problem(path, text, node.start_mark.line + 1))


def joined(text: str) -> str:
    """Return text with surrogate pairs, as in JSON escapes, joined; lone surrogates stay."""
    if not _SURROGATES.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def has_surrogates(text: str) -> bool:
    """Tell whether text has surrogates, which UTF-8 cannot encode."""
    return _SURROGATES.search(text) is not None


def _merged(node: yaml.MappingNode) -> Iterator[yaml.Node]:
    """Yield the nodes that `<<` merges, in order of precedence."""
    for key, item in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag == _MERGE:
            yield from item.value if isinstance(item, yaml.SequenceNode) else [item]


def _child(node: yaml.Node | None, part: str | int) -> tuple[int, yaml.Node] | None:
    """Return the line and the node of a key, or of an item of a list."""
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        return node.value[part].start_mark.line + 1, node.value[part]
    if not isinstance(node, yaml.MappingNode):
        return None
    for key, item in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE and joined(key.value) == part:
            return key.start_mark.line + 1, item
    return next((child for merged in _merged(node) if (child := _child(merged, part))), None)


def _too_deep(mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return _marked(f"nested more than {MAX_DEPTH} levels deep", mark)


def _too_large(mark: yaml.Mark) -> yaml.MarkedYAMLError:
    limits = f"more than {MAX_NODES:,} values or {MAX_CHARS >> 20} MiB"
    return _marked(f"{limits}, including expanded aliases", mark)


def _marked(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _yaml_problem(error: yaml.YAMLError, text: str) -> str:
    """Return the error and its line, without the text there, which may be a credential."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: a character that YAML does not allow"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "it cannot be parsed"
    problem = _QUOTED.sub("...", error.problem or "")
    if "alias" in problem and "undefined" in problem:
        problem += " (quote strings that begin with *)"
    elif r"'\t'" in problem:
        problem += " (indent with spaces, not with tabs)"
    return f"line {error.problem_mark.line + 1}: {problem}"
