"""A thread that stands still ends its process, also after a pause; nothing else does."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import HANG_S

PAUSED = """
import ctypes, time
from pipeline.process.liveness import no_limit, still_alive, hang_guard
with hang_guard(0.3):
    with no_limit():
        still_alive()
        time.sleep(0.6)
    time.sleep(0.02)
    print("after the pause", flush=True)
    ctypes.PyDLL(None).sleep(60)  # never gives Python's lock back
"""
RAISES = PAUSED.replace("        time.sleep(0.6)", "        raise KeyError").replace(
    "    with no_limit():",
    "    import contextlib\n    with contextlib.suppress(KeyError), no_limit():",
)


@pytest.mark.parametrize("code", [PAUSED, RAISES], ids=["ends", "raises"])
def test_what_stands_still_after_a_pause_is_ended(code: str):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "after the pause\n"), done.stderr
    assert "Timeout (0:00:00." in done.stderr


OTHER_GOES_ON = """
import sys, threading, time
from pipeline.process.liveness import no_limit, still_alive, hang_guard

def goes_on():
    with hang_guard(0.5):
        while True:
            still_alive()
            time.sleep(0.02)

threading.Thread(target=goes_on, daemon=True).start()
with hang_guard(0.8):
    if sys.argv[1] == "ends":
        time.sleep(60)
    for _ in range(24):
        still_alive()
        time.sleep(0.05)
time.sleep(1.0)
print("done", flush=True)
"""


@pytest.mark.parametrize(("what", "code"), [("ends", 1), ("goes on", 0)])
def test_a_thread_that_stands_still_is_not_excused_by_one_that_goes_on(what: str, code: int):
    done = subprocess.run(
        [sys.executable, "-c", OTHER_GOES_ON, what],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
    )
    assert (done.returncode, done.stdout) == (code, "" if code else "done\n"), done.stderr
