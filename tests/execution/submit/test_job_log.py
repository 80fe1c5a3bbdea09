"""Following the log of a job through lost answers, with a made-up job API."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.core.errors import InfraError
from pipeline.execution.submit import job
from pipeline.execution.submit.job import JobLog

LOG = "first\nsecond\nthird\nRay says good-bye\n"
GONE = InfraError("its node is gone")


class GrowingLog:
    """A job that ends when the log was read so many times, each time of another length."""

    def __init__(self, *lengths: int | Exception) -> None:
        self.lengths = [*lengths]

    def get_job_info(self, job_id: str) -> Any:
        return SimpleNamespace(status=SimpleNamespace(is_terminal=lambda: not self.lengths))

    def get_job_logs(self, job_id: str) -> str:
        length = self.lengths.pop(0)
        if isinstance(length, Exception):
            raise length
        return LOG[:length]


@pytest.mark.parametrize(
    ("lengths", "shown"),
    [
        ([len(LOG)], LOG),
        ([0, 9, GONE, 9, 20, len(LOG)], LOG),
        ([RuntimeError("no log yet"), 9, len(LOG)], LOG),
        ([9, GONE], LOG[:9]),
    ],
)
def test_no_line_is_lost_or_repeated_over_broken_connections(
    lengths: list[int | Exception], shown: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(job, "PAUSE_S", 0)
    pieces: list[str] = []
    with JobLog(GrowingLog(*lengths), "a-b-12345678-a1", pieces.append) as job_log:
        details = job_log.follow()
    assert details.status.is_terminal()
    assert "".join(pieces).rstrip("\n") == shown.rstrip("\n")
