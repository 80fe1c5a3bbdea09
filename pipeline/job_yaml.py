"""Read the YAML of a job file: safe types only, every key once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import JobError

_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


def read_yaml(path: str) -> dict[str, Any]:
    """Read a mapping; say what is wrong without showing the text.

    Raises:
        JobError: It cannot be read, or is no mapping in plain YAML.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot read the job file: {error}") from None
    try:
        document = _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise JobError(f"{path}: not valid YAML{_yaml_problem(error)}") from None
    if not isinstance(document, dict):
        raise JobError(f"{path}: a job file is a mapping with source, model and sink")
    return document


def parse_value(text: str) -> Any:
    """Parse one value.

    Raises:
        ValueError: It is not plain YAML.
    """
    try:
        return _Loader(text).get_single_data()
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a key given twice, and takes 16:30 for a time and not for 990."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _TEXT if tag in _NUMBERS and ":" in str(value) else tag

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            name = str(key.value)
            if name in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {name} is there twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def _yaml_problem(error: Exception) -> str:
    """Say what is wrong and in which line, without the text there: it may be a credential."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return ""
    return f": line {error.problem_mark.line + 1}: {error.problem}"
