"""Lines of values in a YAML document, and errors of YAML."""

from __future__ import annotations

import pytest

from pipeline.job.reading.yaml_reader import MAX_DEPTH, Path, parse

TEXT = """\
a:
  - x
  - &one {b: 1}
c: {<<: *one, d: 2}
"""


@pytest.mark.parametrize(
    ("path", "depth", "line"),
    [
        (("a", 1, "b"), 3, 3),
        (("a", 2), 1, 1),
        (("a", 0, "b"), 2, 2),
        (("a", "b"), 1, 1),
        (("c", "d"), 2, 4),
        (("c", "b"), 2, 3),
        (("e",), 0, None),
        ((), 0, None),
    ],
)
def test_a_path_has_the_line_of_its_last_existing_part(path: Path, depth: int, line: int | None):
    assert parse(TEXT).line(path) == (depth, line)


def test_nested_lists_are_read_down_to_a_depth():
    deepest = "[" * (MAX_DEPTH - 1) + "1" + "]" * (MAX_DEPTH - 1)
    assert str(parse(deepest).value) == deepest
    with pytest.raises(ValueError, match=f"^line 1: nested more than {MAX_DEPTH} levels deep$"):
        parse(f"[{deepest}]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n\t- b", r"^line 2: found character .* \(indent with spaces, not with tabs\)$"),
        ("a: [1", r"^line 1: expected [^(]*$"),
        ("a: *x", r"^line 1: .* \(quote strings that begin with \*\)$"),
    ],
)
def test_errors_of_yaml_have_a_hint(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_duplicate_key_is_shown_unless_it_may_be_a_credential():
    problems = parse("a: {storage_options: {k: 1, k: 2}}\nb: {k: 1, k: 2}").problems
    assert [(problem.text, problem.line) for problem in problems] == [
        ("a key occurs twice", 1),
        ("the key k occurs twice", 2),
    ]
