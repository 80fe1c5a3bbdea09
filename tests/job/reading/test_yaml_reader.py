"""Where a value stands in a document, as far as it is there."""

from __future__ import annotations

import pytest

from pipeline.job.reading.yaml_reader import Path, parse

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
def test_a_path_has_the_line_of_the_last_part_that_is_there(
    path: Path, depth: int, line: int | None
):
    assert parse(TEXT).line(path) == (depth, line)
