"""Which tests run in one process: those that share something slow to make.

xdist's `--dist loadgroup` reads the groups from private names of pytest, which newer versions of
pytest no longer have; a scheduler of one's own is public: `pytest_xdist_make_scheduler`.
"""

from __future__ import annotations

from pathlib import PurePath

from xdist.scheduler import LoadScopeScheduling

TOGETHER = {
    **{name: name for name in ("test_demo", "test_engines", "test_examples", "test_matrix")},
    **{name: name for name in ("test_hostile_directories", "test_network_faults", "test_submit")},
    "test_progress_channel": "test_submit",  # both use a Ray head with a dashboard
}
"""File -> its group."""
_KILLED = "test_kill_9_and_rerun_equals_an_uninterrupted_run"
"""Its cases share their input, and what an uninterrupted run makes of it."""


def group_of(nodeid: str) -> str:
    """Return the group of a test; its own id if it may run anywhere."""
    path, _, rest = nodeid.partition("::")
    name, _, case = rest.partition("[")
    if name == _KILLED:
        return name
    if "azure" in case.rstrip("]").split("-"):
        return "test_matrix"  # it starts the same server, and no other file takes as long
    return TOGETHER.get(PurePath(path).stem, nodeid)


class Grouped(LoadScopeScheduling):
    """Gives each group to one process, in the order of the tests."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
