"""Runs that are killed and run again, beside one that is not: both must publish the same."""

from __future__ import annotations

import signal
from pathlib import Path

from support.runs.cli import pipeline


def require_same_after_kills(job: str, folder: Path, *options: str) -> None:
    """Run a job undisturbed, and into another output with two kills; hold these to each other."""
    undisturbed, killed = str(folder / "undisturbed"), str(folder / "killed")
    asked = ("run", job, *options, "--set", "run.slice_rows=10")
    done = pipeline(*asked, "--set", f"sink.uri={undisturbed}", timeout_s=600)
    assert done.code == 0, done.stderr
    for number in (2, 1):
        env = {"PIPELINE_FAILPOINT": f"slice_done:kill:{number}"}
        done = pipeline(*asked, "--set", f"sink.uri={killed}", env=env, timeout_s=600)
        assert done.code == -signal.SIGKILL, done.stderr
    done = pipeline(*asked, "--set", f"sink.uri={killed}", timeout_s=600)
    assert done.code == 0, done.stderr
    assert pipeline("verify", killed).code == 0
    compared = pipeline("diff", undisturbed, killed, "--fail-over", "0%")
    assert compared.code == 0, compared.stdout + compared.stderr
