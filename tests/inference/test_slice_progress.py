"""Actors count the rows of their slices, and send few messages, however many batches there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.runs.predicting import images, predictor, rows_of

from pipeline.inference import slice_progress
from pipeline.inference.slice_progress import Send, Slice, add_rows, send_to, start_slice


class Kept:
    """A channel that keeps what is sent in this process."""

    def __init__(self) -> None:
        self.sent: list[tuple[Slice, int]] = []

    def open(self) -> Send:
        return lambda key, num_rows: self.sent.append((key, num_rows))


@pytest.fixture
def channel() -> Iterator[Kept]:
    found = Kept()
    send_to(found)
    yield found
    send_to(None)


def test_few_messages_are_sent_however_many_batches_there_are(
    channel: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(slice_progress, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(slice_progress, "_now", slice_progress._Now())
    start_slice((0, 0))
    for _ in range(1000):
        now_s[0] += 0.01
        add_rows(1)
    start_slice((0, 1000))
    assert len(channel.sent) <= 12
    assert channel.sent[-1] == ((0, 0), 1000)
    assert [n for _, n in channel.sent] == sorted({n for _, n in channel.sent})


def test_threads_count_each_for_its_own_slice(channel: Kept) -> None:
    both = threading.Barrier(2)

    def predict(unit: int) -> None:
        start_slice((unit, 0))
        for _ in range(100):
            both.wait(20)
            add_rows(unit)
        start_slice((unit, 100))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(predict, unit) for unit in (1, 2)]:
            done.result()
    assert dict(channel.sent) == {(1, 0): 100, (2, 0): 200}


def test_a_predictor_counts_its_batches_and_nothing_without_a_channel(channel: Kept) -> None:
    model, rows = predictor("models:colours", batch_size=4), rows_of(images(10))
    for is_asked in (False, True):
        send_to(channel if is_asked else None)
        start_slice((7, 0))
        model.predict(rows, {})
        start_slice((7, 10))
        assert dict(channel.sent) == ({(7, 0): 10} if is_asked else {})
