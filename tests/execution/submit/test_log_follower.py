"""A log is followed to the end of its job, through broken connections; the job API is made up."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import InfraError
from pipeline.execution.submit import log_follower
from pipeline.execution.submit.log_follower import Follower, JobOutput

LOG = "first\nsecond\nthird\nRay says good-bye\n"


class BrokenConnections:
    """Each connection begins with the whole log, and breaks after so many characters."""

    def __init__(self, breaks_after: list[int], rest: str | Exception = LOG) -> None:
        self.breaks_after, self.rest = breaks_after, rest

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: not self.breaks_after))

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        size = self.breaks_after.pop(0)
        for begin in range(0, size, 4):
            yield LOG[begin : min(begin + 4, size)]
        if size % 2:
            raise OSError("broken")

    def get_job_logs(self, job_id: str) -> str:
        if isinstance(self.rest, Exception):
            raise self.rest
        return self.rest


@pytest.mark.parametrize("breaks_after", [[], [9], [9, 5, 20], [len(LOG)], [0, 3, 3]])
def test_no_line_is_lost_or_shown_twice_whatever_breaks(
    breaks_after: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(log_follower, "PAUSE_S", 0)
    shown: list[str] = []
    details = Follower(BrokenConnections(breaks_after), "a-b-12345678-a1").pass_on(shown.append)
    assert details.status.is_terminal()
    assert "".join(shown) == LOG


def test_a_log_whose_end_is_gone_does_not_hide_that_the_job_has_ended(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(log_follower, "PAUSE_S", 0)
    shown: list[str] = []
    client = BrokenConnections([9], InfraError("its node is gone"))
    assert Follower(client, "a-b-12345678-a1").pass_on(shown.append).status.is_terminal()
    assert "".join(shown) == LOG[:9]


def test_the_last_document_is_kept_and_all_else_is_passed_on_in_order():
    lines: list[str] = []
    output, document = JobOutput(lines.append), json.dumps({"status": "published"})
    for piece in ('{"status": "earl', f'ier"}}\nnext\n{document}\n{{"other": 1}}\nen', "d"):
        output.add(piece)
    assert output.end() == document
    assert lines == ["next\n", '{"status": "earlier"}\n', '{"other": 1}\n', "end\n"]
