"""What the lease says of its run while it lives, and how it is asked to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from deadly import wait_until

from pipeline.commit.layout import Layout
from pipeline.commit.lease import Heartbeat, ask_to_stop, hold_lease, read_heartbeat, release_lost
from pipeline.core.documents import sealed, unsealed
from pipeline.core.errors import GateRefused, InfraError, PipelineError, Stopped
from pipeline.process.interrupts import stoppable_body
from pipeline.process.life import new_life
from pipeline.storage.store import Store

LAYOUT = Layout("date=2026-11-24")
SHORT_S, LONG_S = 0.2, 1e6


def read_beat(store: Store, epoch: int = 1) -> Heartbeat:
    return read_heartbeat(store, LAYOUT, epoch)


def test_each_renewal_says_how_far_the_run_is_and_the_last_one_how_it_ended(any_store: Store):
    done = 0

    def tell() -> dict[str, Any]:
        return {"fingerprint": "f", "rows": 10, "rows_done": done, "phase": "predicting"}

    with suppress(GateRefused), hold_lease(any_store, LAYOUT, "run-1", SHORT_S, tell):
        done = 7
        assert wait_until(lambda: read_beat(any_store).rows_done == 7)
        now = read_beat(any_store)
        assert (now.released, now.rows, now.phase, now.exit_code) == (False, 10, "predicting", None)
        assert not now.process.has_ended()
        raise GateRefused("too few\nrows")
    end = read_beat(any_store)
    assert (end.released, end.exit_code, end.error) == (True, 3, "too few rows")
    assert (end.rows_done, end.rows) == (7, 10)


@pytest.mark.parametrize(
    ("error", "code"),
    [(InfraError("gone"), 7), (RuntimeError("what?"), 1), (KeyboardInterrupt(), 6)],
)
def test_whatever_ends_a_run_its_exit_code_is_in_the_last_renewal(
    error: BaseException, code: int, tmp_path: Any
):
    store = Store(str(tmp_path))
    with pytest.raises(type(error)), hold_lease(store, LAYOUT, "run-1", LONG_S):
        raise error
    assert read_beat(store).exit_code == code
    with hold_lease(store, LAYOUT, "run-2", LONG_S) as lease:
        assert lease.epoch == 2, "it let go"


def test_leases_of_the_same_fingerprint_are_attempts(tmp_path: Any):
    store, attempts = Store(str(tmp_path)), list[int | None]()
    for epoch, fingerprint in enumerate(["f", "f", "f", "g", "f"], start=1):
        fields = {"fingerprint": fingerprint}
        with hold_lease(store, LAYOUT, f"run-{epoch}", LONG_S, lambda fields=fields: fields):
            attempts.append(read_beat(store, epoch).attempt)
    assert attempts == [1, 2, 3, 1, 1]


@pytest.mark.parametrize(
    "progress", [RuntimeError("broken"), {"rows": float("nan")}, {"rows": {1}}, 5]
)
def test_a_run_that_cannot_say_how_far_it_is_keeps_its_lease(progress: Any, tmp_path: Any):
    store = Store(str(tmp_path))

    def tell() -> Any:
        if isinstance(progress, Exception):
            raise progress
        return progress

    with hold_lease(store, LAYOUT, "run-1", LONG_S, tell) as lease:
        lease.check()
        assert (read_beat(store).run_id, read_beat(store).rows) == ("run-1", None)
    assert read_beat(store).released


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b'{"rows": "ten", "eta_s": 1e999, "pid": null, "new": [1]}']
)
def test_a_heartbeat_of_any_other_form_says_nothing_and_stops_nobody(data: bytes, tmp_path: Any):
    store = Store(str(tmp_path))
    assert Heartbeat.from_json(data) == Heartbeat()
    with hold_lease(store, LAYOUT, "run-1", LONG_S):
        pass
    store.put(LAYOUT.heartbeat(1), data)
    owner = unsealed(store.read_bytes(LAYOUT.lease(1)))
    store.put(LAYOUT.lease(1), sealed({**owner, "pid_started": 1.0}))
    with hold_lease(store, LAYOUT, "run-2", LONG_S) as lease:
        assert lease.epoch == 2


def test_what_a_lost_run_said_last_stays_when_its_lease_is_released_for_it(tmp_path: Any):
    store = Store(str(tmp_path))
    with hold_lease(store, LAYOUT, "run-1", LONG_S, lambda: {"rows": 10, "rows_done": 4}):
        release_lost(store, LAYOUT, "run-1", InfraError("killed"))
        end = read_beat(store)
    assert (end.released, end.exit_code, end.error) == (True, 7, "killed")
    assert (end.rows, end.rows_done, end.attempt) == (10, 4, 1)


def run_until_stopped(store: Store, before: Callable[[int], object]) -> PipelineError:
    def run() -> None:
        with new_life(), stoppable_body(), hold_lease(store, LAYOUT, "run-1", SHORT_S) as lease:
            before(lease.epoch)
            threading.Event().wait(60)

    with pytest.raises(Stopped) as caught:
        run()
    return caught.value


def test_a_run_that_is_asked_to_stop_ends_as_by_a_signal_and_no_later_one_does(any_store: Store):
    stopped = run_until_stopped(any_store, lambda _: ask_to_stop(any_store, LAYOUT, 1, "me\n@pc"))
    assert str(stopped) == "pipeline stop by me @pc"
    assert (read_beat(any_store).exit_code, read_beat(any_store).error) == (6, str(stopped))
    with new_life(), stoppable_body(), hold_lease(any_store, LAYOUT, "run-2", SHORT_S):
        first = read_beat(any_store, 2).written_at
        assert wait_until(lambda: read_beat(any_store, 2).written_at != first)
        assert not ask_to_stop(any_store, LAYOUT, 1, "again")
    assert read_beat(any_store, 2).exit_code == 0


@pytest.mark.parametrize("data", [b"", b"[]", b'{"by": 1}', b"{}"])
def test_a_file_of_that_name_stops_the_run_whatever_is_in_it(data: bytes, tmp_path: Any):
    store = Store(str(tmp_path))
    assert "pipeline stop" in str(
        run_until_stopped(store, lambda epoch: store.put(LAYOUT.stop(epoch), data))
    )
