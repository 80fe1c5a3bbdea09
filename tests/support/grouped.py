"""Which tests run in one process: those of a file, since they share what is slow to make.

xdist's `--dist loadgroup` reads the groups from private names of pytest, which newer versions of
pytest no longer have; a scheduler of one's own is public: `pytest_xdist_make_scheduler`.
"""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {"test_ticks": "test_submit"}  # both use a Ray head with a dashboard
"""File -> the file in whose process it runs."""


def group_of(nodeid: str) -> str:
    """Return the group of a test: the name of a file."""
    path, _, rest = nodeid.partition("::")
    if "azure" in rest.partition("[")[2].rstrip("]").split("-"):
        return "test_matrix"  # it starts the same server, and few files take as long
    stem = PurePath(path).stem
    return TOGETHER.get(stem, stem)


class Grouped(LoadScopeScheduling):
    """Gives each group to one process, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
