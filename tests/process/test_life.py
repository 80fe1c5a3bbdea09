"""What a run keeps in its process is its own, and is given up however the process ends."""

from __future__ import annotations

import threading

import pytest

from pipeline.core.errors import JobError, Stopped
from pipeline.execution.caller import one_run_at_a_time
from pipeline.process.interrupts import interrupt, reason, stoppable_body
from pipeline.process.life import current, new_life
from pipeline.process.liveness import last_progress, note_progress


class Kept:
    """Something that a run keeps."""


def test_a_life_keeps_one_value_of_a_class_and_the_next_one_has_another():
    with new_life():
        first = current().part(Kept)
        assert current().part(Kept) is first
        with new_life():
            assert current().nearest(Kept) is first, "runs that share something find it"
            assert current().part(Kept) is not first
            assert current().nearest(Kept) is not first
        assert current().part(Kept) is first


def test_close_gives_up_what_is_held_the_newest_first_whatever_fails_or_hangs():
    calls, hangs = list[str](), threading.Event()
    with new_life() as life, life.closing(lambda: calls.append("given back")):
        pass
    with (
        new_life() as life,
        life.closing(lambda: calls.append("oldest")),
        life.closing(lambda: 1 / 0),
        life.closing(hangs.wait),
        life.closing(lambda: calls.append("newest")),
    ):
        life.close(0.05)
        assert calls == ["newest", "oldest"]
        life.close(0.05)
    assert calls == ["newest", "oldest"], "what is given up is not given up again"
    hangs.set()


def test_what_stopped_a_run_does_not_stop_the_next_one_but_its_caller_learns_of_it():
    why = Stopped("deadline reached")
    with new_life():
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
