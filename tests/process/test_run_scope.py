"""The values of a run are its own, and are given up however the process ends."""

from __future__ import annotations

import threading

import pytest

from pipeline.core.errors import JobError, Stopped
from pipeline.execution.caller import one_run_at_a_time
from pipeline.process.interrupts import interrupt, reason, stoppable_body
from pipeline.process.liveness import last_progress, note_progress
from pipeline.process.run_scope import current_scope, new_scope


class Kept:
    """Something that a run keeps."""


def test_a_life_keeps_one_value_of_a_class_and_the_next_one_has_another():
    with new_scope():
        first = current_scope().part(Kept)
        assert current_scope().part(Kept) is first
        with new_scope():
            assert current_scope().nearest(Kept) is first, "runs that share something find it"
            assert current_scope().part(Kept) is not first
            assert current_scope().nearest(Kept) is not first
        assert current_scope().part(Kept) is first


def test_close_gives_up_what_is_held_the_newest_first_whatever_fails_or_hangs():
    calls, hangs = list[str](), threading.Event()
    with new_scope() as scope, scope.closing(lambda: calls.append("given back")):
        pass
    with (
        new_scope() as scope,
        scope.closing(lambda: calls.append("oldest")),
        scope.closing(lambda: 1 / 0),
        scope.closing(hangs.wait),
        scope.closing(lambda: calls.append("newest")),
    ):
        scope.close(0.05)
        assert calls == ["newest", "oldest"]
        scope.close(0.05)
    assert calls == ["newest", "oldest"], "what is given up is not given up again"
    hangs.set()


def test_what_stopped_a_run_does_not_stop_the_next_one_but_its_caller_learns_of_it():
    why = Stopped("deadline reached")
    with new_scope():
        with pytest.raises(Stopped), one_run_at_a_time(), stoppable_body():  # noqa: PT012
            note_progress("a step")
            interrupt(why)
            threading.Event().wait(60)
        assert reason() is why
        with one_run_at_a_time():
            assert reason() is None
            assert last_progress() == (0, "nothing yet")
            with pytest.raises(JobError, match="another run"), one_run_at_a_time():
                pass
