"""Which tests run in one process: those of a file, since they share what is slow to make.

Those that need an Azure server are one more group, wherever they stand: it takes long to start.
xdist's `--dist loadgroup` reads the groups from private names of pytest, which newer versions of
pytest no longer have; a scheduler of one's own is public: `pytest_xdist_make_scheduler`.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling


def group_of(nodeid: str) -> str:
    """Return the group of a test: its file, or `azure`."""
    path, _, rest = nodeid.partition("::")
    case = rest.partition("[")[2].rstrip("]").split("-")
    return "azure" if "azure" in case else path


class Grouped(LoadScopeScheduling):
    """Gives each group to one process, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
