"""Files below a source that are not input: reasons, counts, and the first names per reason.

Only counts and a few names are kept, so that millions of such files take no memory.
"""

from __future__ import annotations

import re
from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from pipeline.core.output_folders import CONTROL

FIRST_NAMES: Final = 5
"""Names to keep per reason."""
_MAX_EXTENSIONS = 1_000
_SHOWN_EXTENSIONS = 20
_MAX_DESCRIBED = 6
NO_EXTENSION: Final = "(none)"
OTHERS: Final = "(others)"
_EXTENSION = re.compile(r"\.[a-z0-9_+-]{1,16}")
_MARKER = re.compile(
    r"_SUCCESS(\.\w+)?|_(common_)?metadata(\.\w+)?|_(committed|started)_(vacuum)?\d+"
    r"|_delta_log|_delta_index|_change_data|_symlink_format_manifest|_spark_metadata"
    r"|_temporary|__MACOSX|Thumbs\.db|desktop\.ini"
)
_RESERVED = frozenset([CONTROL, "_logs"])
"""Names of our own files and of Hadoop's; a folder of data may have such a name, too."""


class SkipReason(StrEnum):
    """The reason why a file below the source is not input; a closed set."""

    EXTENSION = "extension"
    HIDDEN = "hidden"
    MARKER = "marker"
    RESERVED = "reserved"
    LINK = "link"
    LINK_TO_FOLDER = "link_to_folder"
    BROKEN_LINK = "broken_link"
    SPECIAL_FILE = "special_file"
    NOT_UTF8 = "not_utf8"
    BAD_KEY = "bad_key"


EXPECTED: Final = frozenset({SkipReason.HIDDEN, SkipReason.MARKER, SkipReason.LINK})
"""Expected reasons, which `gates.max_skipped_pct` does not count."""


@dataclass(frozen=True)
class Skipped:
    """The skipped files of a source."""

    files: Mapping[str, int] = field(default_factory=dict)
    first: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Reason -> first names, sorted; a reason is a `SkipReason`, or one of a newer version."""
    extensions: Mapping[str, int] = field(default_factory=dict)
    """Extension -> files of reason `extension`; the most frequent first."""

    @property
    def total(self) -> int:
        """Number of files, for all reasons."""
        return sum(self.files.values())

    @property
    def judged(self) -> int:
        """Number of files that `gates.max_skipped_pct` counts."""
        return sum(count for reason, count in self.files.items() if self.counts(reason))

    def counts(self, reason: str) -> bool:
        """Tell whether there are files of a reason that `gates.max_skipped_pct` counts."""
        return reason not in EXPECTED and bool(self.files.get(reason))

    def describe(self) -> str:
        """Summarise the skipped files: `15 .heic, 10 .xmp, 2 hidden`."""
        parts = Counter({_words(name): count for name, count in self.extensions.items()})
        parts.update({str(r): n for r, n in self.files.items() if r != SkipReason.EXTENSION})
        shown = parts.most_common(_MAX_DESCRIBED if len(parts) > _MAX_DESCRIBED + 1 else None)
        descriptions = [f"{count} {name}" for name, count in shown]
        rest = parts.total() - sum(count for _, count in shown)
        return ", ".join([*descriptions, f"{rest} others"] if rest else descriptions)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form in plan, report and manifest."""
        return {
            "files": self.total,
            "judged": self.judged,
            "reasons": [
                {"reason": str(reason), "files": count, "first": [*self.first.get(reason, ())]}
                for reason, count in self.files.items()
            ],
            "extensions": [
                {"extension": name, "files": count} for name, count in self.extensions.items()
            ],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Skipped:
        """Read the JSON form; an empty one has no files."""
        reasons = document.get("reasons", [])
        return cls(
            {entry["reason"]: entry["files"] for entry in reasons},
            {entry["reason"]: tuple(entry["first"]) for entry in reasons},
            {entry["extension"]: entry["files"] for entry in document.get("extensions", [])},
        )


class SkipCounter:
    """Counts skipped files, in any order."""

    def __init__(self) -> None:
        self._files: Counter[SkipReason] = Counter()
        self._first: dict[SkipReason, list[str]] = {}
        self._extensions: Counter[str] = Counter()

    def add(self, path: str, reason: SkipReason) -> None:
        """Count a file, relative to the source."""
        self._files[reason] += 1
        names = self._first.setdefault(reason, [])
        if len(names) < FIRST_NAMES or path < names[-1]:
            insort(names, path)
            del names[FIRST_NAMES:]
        if reason is SkipReason.EXTENSION:
            extension = extension_of(path)
            is_new = extension not in self._extensions
            is_full = is_new and len(self._extensions) >= _MAX_EXTENSIONS
            self._extensions[OTHERS if is_full else extension] += 1

    def result(self) -> Skipped:
        """Return the counts, with reasons in the order of `SkipReason`."""
        counts = sorted(self._extensions.items(), key=lambda pair: (-pair[1], pair[0]))
        named = {name: count for name, count in counts if name != OTHERS}
        shown = dict([*named.items()][:_SHOWN_EXTENSIONS])
        others = self._extensions.total() - sum(shown.values())
        return Skipped(
            {reason: self._files[reason] for reason in SkipReason if self._files[reason]},
            {
                reason: tuple(map(printable, self._first[reason]))
                for reason in SkipReason
                if self._files[reason]
            },
            shown | ({OTHERS: others} if others else {}),
        )


def reason_of_name(path: str) -> SkipReason | None:
    """Return the reason to skip a path for its name alone; None if its name may be input."""
    if not _is_suspect(path):
        return None
    segments = path.split("/")
    if path.startswith("/") or path.endswith("/") or "\0" in path or {".", ".."} & set(segments):
        return SkipReason.BAD_KEY
    for segment in segments:
        if segment.startswith("."):
            return SkipReason.HIDDEN
        if _MARKER.fullmatch(segment):
            return SkipReason.MARKER
        if segment in _RESERVED:
            return SkipReason.RESERVED
    return None


def _is_suspect(path: str) -> bool:
    """Tell quickly whether a name needs a closer look: there may be millions of names."""
    starts = path.startswith((".", "_", "T", "d", "/")) or path.endswith("/")
    within = "/." in path or "/_" in path or "/T" in path or "/d" in path
    return starts or within or "\0" in path


def is_utf8(path: str) -> bool:
    """Tell whether a name is valid UTF-8, as row ids must be."""
    if path.isascii():
        return True
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(path: str) -> str:
    """Return a name as text: bytes that are not UTF-8 become `\\xe9`."""
    try:
        data = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = path.encode("utf-8", "backslashreplace")
    return data.decode("utf-8", "backslashreplace")


def extension_of(path: str) -> str:
    """Return the extension in lower case; `(others)` for an unusual one."""
    _, dot, tail = path.rpartition("/")[2].rpartition(".")
    if not dot:
        return NO_EXTENSION
    extension = f".{tail.lower()}"
    return extension if _EXTENSION.fullmatch(extension) else OTHERS


def _words(extension: str) -> str:
    return {NO_EXTENSION: "without extension", OTHERS: "others"}.get(extension, extension)
