"""Actors report progress within a slice, cheaply, and nothing waits for the reports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from cli import environment
from predicting import images, predictor, rows_of
from rayhead import RayHead

from pipeline.inference import ticks
from pipeline.inference.ticks import Board, PipeChannel, PipeListener, begin, count, listen, tell

SENDER = """
import json, sys
from pipeline.inference.ticks import PipeChannel, begin, count, tell
tell(PipeChannel(*json.loads(sys.argv[1])))
for start in (0, 512):
    begin((3, start))
    for _ in range(16):
        count(32)
begin((3, 1024))
print("done")
"""


@pytest.fixture
def listener() -> Iterator[PipeListener]:
    found = listen("run", 2, is_local=True)
    assert isinstance(found, PipeListener)
    yield found
    tell(None)
    found.close()


def test_another_process_tells_through_the_pipe_and_the_last_count_of_a_slice_comes(
    listener: PipeListener,
) -> None:
    channel = listener.channel
    where = json.dumps([channel.pid, channel.descriptor])
    done = subprocess.run(
        [sys.executable, "-c", SENDER, where], env=environment(), capture_output=True, text=True
    )
    assert done.stdout == "done\n", done.stderr
    assert listener.read() == {(3, 0): 512, (3, 512): 512}
    assert listener.read() == {}


def test_a_full_or_closed_pipe_blocks_no_actor(listener: PipeListener) -> None:
    send = listener.channel.open()
    for number in range(10_000):  # more than a pipe holds
        send((number, 0), 1)
    found = listener.read()
    assert 0 < len(found) < 10_000
    assert PipeChannel(os.getpid(), 1 << 20).open()((0, 0), 1) is None


def test_what_is_no_record_is_passed_over(listener: PipeListener) -> None:
    descriptor = os.open(f"/proc/{os.getpid()}/fd/{listener.channel.descriptor}", os.O_WRONLY)
    os.write(descriptor, b"what?")
    os.close(descriptor)
    assert listener.read() == {}


def test_few_messages_are_sent_however_many_batches_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [100.0]
    sent: list[tuple[tuple[int, int], int]] = []
    monkeypatch.setattr(ticks, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(ticks, "_now", ticks._Now())
    monkeypatch.setattr(ticks, "_send", lambda key, n: sent.append((key, n)))
    begin((0, 0))
    for _ in range(1000):
        now_s[0] += 0.01
        count(1)
    begin((0, 1000))
    assert len(sent) <= 12
    assert sent[-1] == ((0, 0), 1000)
    assert [n for _, n in sent] == sorted({n for _, n in sent})


def test_threads_count_each_for_its_own_slice(listener: PipeListener) -> None:
    tell(listener.channel)
    both = threading.Barrier(2)

    def predict(unit: int) -> None:
        begin((unit, 0))
        for _ in range(100):
            both.wait(20)
            count(unit)
        begin((unit, 100))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(predict, unit) for unit in (1, 2)]:
            done.result()
    assert listener.read() == {(1, 0): 100, (2, 0): 200}


def test_a_predictor_counts_its_batches_and_nothing_without_a_channel(
    listener: PipeListener,
) -> None:
    model, rows = predictor("models:colours", batch_size=4), rows_of(images(10))
    for is_asked in (False, True):
        tell(listener.channel if is_asked else None)
        begin((7, 0))
        model.predict(rows, {})
        begin((7, 10))
        assert listener.read() == ({(7, 0): 10} if is_asked else {})


def test_the_board_keeps_what_was_told_last() -> None:
    board = Board(2)
    board.put({(0, 0): 32, (1, 0): 7})
    board.put({(0, 0): 64})
    assert board.read() == board.read() == {(0, 0): 64, (1, 0): 7}
    board.put({(2, 0): 1})
    assert board.read() == {(0, 0): 64, (2, 0): 1}


ON_A_CLUSTER = """
import sys, time
import ray
from pipeline.inference.ticks import begin, count, listen, tell

ray.init(address=sys.argv[1], log_to_driver=False, runtime_env={"env_vars": {"A": "1"}})

class Actor:
    def work(self, channel):
        tell(channel)
        begin((0, 0))
        count(32)
        return "done"

listener = listen("run-1", 1, is_local=False)
actor = ray.remote(num_cpus=0)(Actor).remote()
print(ray.get(actor.work.remote(listener.channel), timeout=60))
found, until = {}, time.monotonic() + 60
while not found and time.monotonic() < until:  # the board starts only now
    found = listener.read()
print(found)
"""


def test_actors_of_a_cluster_find_the_board_that_is_started_after_them(ray_head: RayHead) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ON_A_CLUSTER, ray_head.address],
        env={**environment(), "RAY_AUTH_MODE": "token", **ray_head.secret},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout.splitlines() == ["done", "{(0, 0): 32}"], done.stderr
