"""What stands still is ended also after a pause."""

from __future__ import annotations

import subprocess
import sys

import pytest

PAUSED = """
import time
from pipeline.process.watchdog import pause, tick, watch
with watch(0.3):
    with pause():
        tick()
        time.sleep(0.6)
    print("after the pause", flush=True)
    time.sleep(60)
"""
RAISES = PAUSED.replace("        time.sleep(0.6)", "        raise KeyError").replace(
    "    with pause():", "    import contextlib\n    with contextlib.suppress(KeyError), pause():"
)


@pytest.mark.parametrize("code", [PAUSED, RAISES], ids=["ends", "raises"])
def test_what_stands_still_after_a_pause_is_ended(code: str):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (1, "after the pause\n"), done.stderr
    assert "Timeout (0:00:00.3" in done.stderr


OTHER_GOES_ON = """
import sys, threading, time
from pipeline.process.watchdog import pause, tick, watch

def goes_on():
    with watch(0.5):
        while True:
            tick()
            time.sleep(0.02)

threading.Thread(target=goes_on, daemon=True).start()
with watch(3 * 0.5):
    if sys.argv[1] == "ends":
        time.sleep(60)
    for _ in range(40):
        tick()
        time.sleep(0.05)
print("done", flush=True)
"""


@pytest.mark.parametrize(("what", "code"), [("ends", 1), ("goes on", 0)])
def test_a_thread_that_stands_still_is_not_excused_by_one_that_goes_on(what: str, code: int):
    done = subprocess.run(
        [sys.executable, "-c", OTHER_GOES_ON, what],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "" if code else "done\n"), done.stderr
