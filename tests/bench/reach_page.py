"""The page of `reach.py`: numbers of each task, then the classes that are not equal, by message."""

from __future__ import annotations

import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

EQUAL, DIFFERS, REFUSED, NOT_BUILT = "equal", "differs", "refused", "not built"
_COMMAND = "python tests/bench/reach.py --out build/reach.json --page build/reach.md"
_MOST_CHARS, _WIDTH = 160, 100


class Verdict(NamedTuple):
    """What became of one class."""

    task: str
    name: str
    verdict: str
    why: str = ""
    """Of vectors that are equal, the pooling."""


def page_of(verdicts: Sequence[Verdict]) -> str:
    """Return the page."""
    import transformers

    lines = [f"# Every class of transformers {transformers.__version__}", "", f"`{_COMMAND}`", ""]
    lines += ["| task | equal | differs | refused | not built |", "|---|---:|---:|---:|---:|"]
    for task in dict.fromkeys(verdict.task for verdict in verdicts):
        counts = Counter(verdict.verdict for verdict in verdicts if verdict.task == task)
        cells = (str(counts[v]) for v in (EQUAL, DIFFERS, REFUSED, NOT_BUILT))
        lines.append(f"| {task} | {' | '.join(cells)} |")
    poolings = Counter((e.task, e.why) for e in verdicts if e.verdict == EQUAL and e.why)
    poolings_line = ", ".join(
        f"{task} {why} {num}" for (task, why), num in sorted(poolings.items())
    )
    lines += ["", f"Pooling of vectors that are equal: {poolings_line}."]
    for outcome in (DIFFERS, REFUSED, NOT_BUILT):
        some = [verdict for verdict in verdicts if verdict.verdict == outcome]
        if some:
            lines += ["", f"## {outcome.capitalize()}", "", *_grouped(some)]
    return "\n".join(lines) + "\n"


def _grouped(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """Yield an entry of a list per message, with the classes that it is about."""
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for verdict in verdicts:
        groups[_message(verdict)][verdict.name] = None
    for message, names in sorted(groups.items(), key=lambda item: -len(item[1])):
        yield from textwrap.wrap(
            f"- {message}: {', '.join(names)}",
            _WIDTH,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )


def _message(verdict: Verdict) -> str:
    """Return a message without what is of one class alone; of the library's errors the type."""
    if verdict.verdict == NOT_BUILT:
        return verdict.why.partition(":")[0]
    text = verdict.why.replace(verdict.name, "the class").removeprefix("JobError: ")
    text = re.sub(r"model\.path = \S+:", "model.path:", text)  # a folder of this run
    text = re.sub(r"than \w+, which a directory gets: [^;]*", "than its main input", text)
    text = re.sub(r"\(\d+(?:, \d+)*\)|\[\d+(?:, \d+)*\]|\b\d+(?:\.\d+)?\b", "N", text)
    cut = text if len(text) <= _MOST_CHARS else text[:_MOST_CHARS].rpartition(" ")[0] + " ..."
    return re.sub(r"[*_<>|]", r"\\\g<0>", cut)
