"""The table of tests with a Ray in README.md names the files whose tests are marked so."""

from __future__ import annotations

import re

from support.runs.checkout import TESTS

STARTS_RAY = re.compile(r"pytest\.mark\.(ray|one_ray|any_ray\w*)\b|\bray_head: ")


def test_the_table_of_tests_with_a_ray_names_the_files_that_have_some():
    readme = (TESTS / "README.md").read_text()
    table = readme.partition("## Tests with a Ray")[2].partition("\n## ")[0]
    listed = set(re.findall(r"\((\w+/[\w/]*test_\w+\.py)\)", table))
    files = {path for path in TESTS.rglob("test_*.py") if STARTS_RAY.search(path.read_text())}
    assert listed == {path.relative_to(TESTS).as_posix() for path in files}
