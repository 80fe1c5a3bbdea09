"""pipeline/operations/README.md is what the docstrings say.

`python tests/test_api_page.py` writes it anew.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pipeline
from pipeline.operations.published.rows import Rows
from pipeline.runs.samples.originals import Original, Originals

PAGE = Path(pipeline.__file__).parent / "operations" / "README.md"
HEAD = """# Python

`import pipeline` takes some milliseconds; what a name needs is imported when the name is used. This
page is made from the docstrings. A job is the path of a job file, its sections as a mapping, or
what `load_job` returned. Results print as their summary, and a notebook shows them as tables. All
errors are `pipeline.errors.PipelineError`, each with the `exit_code` of the command.

```python
import pipeline

report = pipeline.predict("photos", model="models/vit", to="labels")
night = pipeline.open_output("labels").latest
night.images(night.least_certain(24))
```
"""
FUNCTIONS = [name for name in pipeline.__all__ if inspect.isroutine(getattr(pipeline, name))]
CLASSES = {
    "Output": pipeline.Output,
    "Partition": pipeline.Partition,
    "Rows": Rows,
    "Originals": Originals,
    "Original": Original,
    "Diff": pipeline.Diff,
    "Reproduced": pipeline.Reproduced,
}
ELSEWHERE = {
    "Job": "[the job file](../../jobs/README.md), section by section",
    "Report": "[report.json](../report/README.md), field by field",
    "errors": "the classes of errors, as in [exit codes](../../README.md#exit-codes)",
}
WIDTH = 100


def page() -> str:
    parts = [HEAD]
    parts += [f"## {name}\n\n{told(getattr(pipeline, name), name)}" for name in FUNCTIONS]
    parts += [f"## {name}\n\n{about_class(each, name)}" for name, each in CLASSES.items()]
    others = "\n".join(f"- `{name}`: {what}." for name, what in ELSEWHERE.items())
    return "\n".join([*parts, f"## Others\n\n{others}\n"])


def told(function: Any, name: str) -> str:
    """The signature, the docstring, its arguments as a table."""
    return f"```python\n{signature(function, name)}\n```\n\n{described(function)}"


def signature(function: Any, name: str) -> str:
    given = inspect.signature(function)
    parameters = [each for each in given.parameters.values() if each.name != "self"]
    shown = plain(str(given.replace(parameters=parameters)))
    line = f"{name}{shown}"
    if len(line) <= WIDTH:
        return line
    lines, is_keyword = [], False
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not is_keyword:
            lines.append("*")
            is_keyword = True
        lines.append(plain(str(each)))
    end = plain(f") -> {given.return_annotation!r}")
    return "\n".join([f"{name}(", *(f"    {each}," for each in lines), end])


def plain(text: str) -> str:
    """Annotations as they are written: they are texts until they are needed."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)


def described(function: Any) -> str:
    text, sections = divided(inspect.getdoc(function) or "")
    parts = [wrapped(text)]
    for title, entries in sections.items():
        if title == "Args":
            rows = "".join(f"| `{name}` | {what} |\n" for name, what in entries)
            parts.append(f"| argument | |\n|---|---|\n{rows}")
        elif title == "Raises":
            rows = "".join(f"| `{name}` | {what} |\n" for name, what in entries)
            parts.append(f"| raises | if |\n|---|---|\n{rows}")
        else:
            what = " ".join(filter(None, (word for entry in entries for word in entry)))
            parts.append(wrapped(f"*{title}:* {what}"))
    return "\n".join(parts)


def divided(doc: str) -> tuple[str, dict[str, list[tuple[str, str]]]]:
    """The text of a docstring, and the entries of its sections: name and meaning."""
    text, *rest = re.split(r"^(Args|Returns|Raises|Yields):\n", doc, flags=re.MULTILINE)
    sections = {}
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        entries = re.split(r"\n(?=\S)", textwrap.dedent(body).strip())
        pairs = (entry.partition(": ") for entry in entries)
        if title in ("Args", "Raises"):
            sections[title] = [(name, " ".join(what.split())) for name, _, what in pairs]
        else:
            sections[title] = [("", " ".join(body.split()))]
    return text.strip(), sections


def wrapped(text: str) -> str:
    paragraphs = re.split(r"\n\n+", text)
    return (
        "\n\n".join(
            textwrap.fill(
                " ".join(each.split()), WIDTH, break_long_words=False, break_on_hyphens=False
            )
            for each in paragraphs
        )
        + "\n"
    )


def about_class(kind: type, name: str) -> str:
    """The docstring, and a table of what an instance has."""
    rows = "".join(f"| {member} | {what} |\n" for member, what in members(kind))
    return f"{wrapped(inspect.getdoc(kind) or '')}\n| | |\n|---|---|\n{rows}"


def members(kind: type) -> Iterator[tuple[str, str]]:
    for name, each in vars(kind).items():
        if name.startswith("_") and name != "__getitem__":
            continue
        value = getattr(each, "func", each)  # of a cached property
        first = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
        if isinstance(each, property) or value is not each:
            yield f"`.{name}`", first
        elif inspect.isfunction(each):
            shown = ", ".join(p for p in inspect.signature(each).parameters if p != "self")
            yield (f"`[{shown}]`" if name == "__getitem__" else f"`.{name}({shown})`"), first


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text("ascii") == page(), "run `python tests/test_api_page.py`"


def test_everything_that_is_exported_is_on_the_page():
    assert {*FUNCTIONS, *CLASSES, *ELSEWHERE} >= {*pipeline.__all__}


if __name__ == "__main__":
    PAGE.write_text(page(), "ascii")
