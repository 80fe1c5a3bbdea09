"""Substitute `${date}`, `${hour}` and `${env:NAME}` in a job, and remember the secrets."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.job.reading.yaml_reader import MAX_CHARS, Path, Problem, has_surrogates

_SUBSTITUTION = re.compile(r"\$\{([^}]*)\}")
_SECRET_CHARS = 4
"""Shorter values are not hidden: they would match in every sentence."""


@dataclass
class Secrets:
    """Values that no error may show."""

    paths: set[Path] = field(default_factory=set)
    """Paths of values that contain an environment variable."""
    values: dict[str, str] = field(default_factory=dict)
    """Variable -> its value."""
    unknown: set[Path] = field(default_factory=set)
    """Paths of values that could not be substituted."""

    def hide(self, text: str) -> str:
        """Replace values of the environment by the names of their variables."""
        for name, value in sorted(self.values.items(), key=lambda item: -len(item[1])):
            for form in (value, repr(value)[1:-1]):
                if len(form) >= _SECRET_CHARS:
                    text = text.replace(form, f"${{env:{name}}}")
        return text


@dataclass
class Substitution:
    """Substitutes `${date}`, `${hour}` and `${env:NAME}`, and nothing else."""

    date: dt.date
    """A `datetime` also has an hour."""
    environment: Mapping[str, str] | None
    """None: do not substitute `${env:NAME}`."""
    secrets: Secrets = field(default_factory=Secrets)
    problems: list[Problem] = field(default_factory=list)
    _num_chars: int = 0

    def apply(self, value: Any, path: Path = ()) -> Any:
        """Return a document with all its strings substituted.

        Raises:
            ValueError: The result is larger than a job may be.
        """
        if isinstance(value, dict):
            return {
                self._key(key, path): self.apply(item, (*path, str(key)))
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.apply(item, (*path, index)) for index, item in enumerate(value)]
        if isinstance(value, dt.date | dt.datetime):
            return value.isoformat()
        return self._text(value, path) if isinstance(value, str) else value

    def _key(self, key: Any, path: Path) -> Any:
        if not isinstance(key, str) or not has_surrogates(key):
            return key
        self._wrong(path, "a key is not UTF-8 text")
        return key.encode("utf-8", "replace").decode()

    def _text(self, text: str, path: Path) -> str:
        filled = _SUBSTITUTION.sub(lambda match: self._replace(match, path), text)
        if has_surrogates(filled):
            names = _SUBSTITUTION.findall(text) if path in self.secrets.paths else []
            self._wrong(path, "not UTF-8 text" + (f", as ${{{names[0]}}} is" if names else ""))
            return ""
        return filled

    def _replace(self, match: re.Match[str], path: Path) -> str:
        name = match.group(1)
        variable = name.removeprefix("env:")
        if name == "date":
            return self._counted(f"{self.date:%Y-%m-%d}")
        if name == "hour" and isinstance(self.date, dt.datetime):
            return self._counted(f"{self.date:%H}")
        if name == "hour":
            self._wrong(
                path, f"${{hour}} needs a date with an hour, such as {self.date:%Y-%m-%d}T05"
            )
            return match.group(0)
        if variable == name:
            shown = "" if "storage_options" in path else f"${{{name:.80}}}: "
            self._wrong(path, f"{shown}only ${{date}}, ${{hour}} and ${{env:NAME}} are substituted")
        elif self.environment is not None and variable not in self.environment:
            self._wrong(path, f"${{{name:.80}}}: environment variable {variable:.80} is not set")
        elif self.environment is not None:
            self.secrets.paths.add(path)
            self.secrets.values[variable] = self.environment[variable]
            return self._counted(self.environment[variable])
        return match.group(0)

    def _counted(self, text: str) -> str:
        self._num_chars += len(text)
        if self._num_chars > MAX_CHARS:
            raise ValueError(f"more than {MAX_CHARS >> 20} MiB of text after substitution")
        return text

    def _wrong(self, path: Path, text: str) -> None:
        self.secrets.unknown.add(path)
        self.problems.append(Problem(path, f"{'.'.join(map(str, path)) or 'job'}: {text}"))
