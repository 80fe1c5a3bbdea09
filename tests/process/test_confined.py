"""A confined child does what libraries need and nothing else, and ends with its caller."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import HANG_S
from support.runs.checkout import TESTS
from support.runs.cli import environment
from support.toys.deadly import wait_until

from pipeline.core.errors import InfraError, JobError
from pipeline.process.confined import ConfinedError, confined

MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a child may read."""
    made = tmp_path_factory.mktemp("given")
    (made / "text").write_text("given")
    (made / "own.py").write_text("import os; os.mkdir('ran')\n")
    (made / "link").symlink_to("/etc/passwd")
    return made


@pytest.fixture(scope="module")
def silent_port() -> Iterator[int]:
    """A port that nothing may connect to."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server.getsockname()[1]
        with pytest.raises(BlockingIOError):
            server.accept()


def call(function: str, *arguments: Any, reads: Path | None = None, **limits: int) -> Any:
    return confined(f"confinement:{function}", *arguments, reads=[reads] if reads else [], **limits)


def test_it_reads_what_it_is_given_and_the_packages_and_knows_no_secret(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SECRET_KEY", "x")
    assert call("works", str(folder / "text"), reads=folder) == ["given", "HOME"]


CALLER = f"/proc/{os.getpid()}/environ"
REFUSED = {
    "a connection": ("connect", "PORT"),
    "a datagram": ("send", "PORT"),
    "a look-up": ("look_up",),
    "a program": ("start",),
    "a shell": ("shell",),
    "a fork": ("fork",),
    "a signal": ("kill", os.getppid()),
    "a file outside": ("read", "/etc/passwd"),
    "a home": ("read", os.path.expanduser("~/.netrc")),
    "another process": ("read", CALLER),
    "a link that leads outside": ("read", "FOLDER/link"),
    "a file that is no code, where modules are": ("read", f"{TESTS}/README.md"),
    "a listing": ("list_folder", "/etc"),
    "writing what it reads": ("write", "FOLDER/text"),
    "writing beside it": ("write", "FOLDER/more"),
    "writing elsewhere": ("write", "/tmp/confined"),
    "removing": ("remove", "FOLDER/text"),
    "a second name": ("link", "FOLDER/text", "FOLDER/more"),
    "a database": ("database", "FOLDER/text"),
    "a module of the files": ("import_file", "FOLDER/own.py"),
    "a script of the files": ("run_file", "FOLDER/own.py"),
    "a library of the files": ("load_library", "FOLDER/own.so"),
    "a pickle": ("unpickle", pickle.dumps(os.getcwd).hex()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_model_directory_must_not_cause_is_refused(
    case: str, folder: Path, silent_port: int
):
    values = {"PORT": silent_port}
    function, *arguments = (
        values.get(item, item.replace("FOLDER", str(folder)) if isinstance(item, str) else item)
        for item in REFUSED[case]
    )
    with pytest.raises(ConfinedError, match="is not allowed over a model directory") as caught:
        call(function, *arguments, reads=folder)
    assert "\n" not in str(caught.value)
    assert sorted(os.listdir(folder)) == ["link", "own.py", "text"]


@pytest.mark.parametrize(
    "tried", [("read_natively", "/etc/passwd"), ("read_natively", CALLER),
              ("run_natively", "/bin/true"), ("connect_natively", "PORT")]
)  # fmt: skip
def test_the_kernel_holds_native_code(tried: tuple[str, str], silent_port: int):
    if not confined("pipeline.process.confined_server:restrict", [], [], reads=[]):
        pytest.skip("this kernel has no Landlock")
    function, argument = tried
    with pytest.raises(ConfinedError, match="Permission denied"):
        call(function, silent_port if argument == "PORT" else argument)


def test_this_process_is_not_confined():
    assert Path("/etc/passwd").exists()
    assert Path("/etc/passwd").read_text()


LIMITS = {
    "memory": (("allocate", 900 * MIB), {"memory_bytes": 500 * MIB}, "MemoryError"),
    "time": (("never_end",), {"cpu_s": 1}, "it takes too long"),
    "a reply": (("reply", 65 * MIB), {}, "it writes too much"),
    "a crash": (("crash",), {}, "its process died of SIGABRT"),
    "an exit": (("leave",), {}, "SystemExit: 3"),
    "no JSON": (("no_json",), {}, "set is not JSON serializable"),
}


@pytest.mark.parametrize("case", LIMITS)
def test_a_child_that_goes_beyond_its_limits_is_one_line(case: str):
    tried, limits, says = LIMITS[case]
    with pytest.raises(ConfinedError, match=says):
        call(*tried, **limits)
    assert call("add", 1, 2) == 3


def test_within_its_memory_it_may():
    assert call("allocate", 300 * MIB, memory_bytes=500 * MIB) == 300 * MIB


def test_an_error_of_ours_is_the_callers():
    with pytest.raises(JobError, match=r"^model\.path: refused$"):
        call("refuse")


def test_threads_and_forks_share_the_server():
    ours, sums = call("server"), []
    threads = [threading.Thread(target=lambda n=n: sums.append(call("add", n, n))) for n in (1, 2)]
    for thread in threads:
        thread.start()
    if not (child := os.fork()):
        os._exit(0 if call("server") == ours and call("add", 4, 4) == 8 else 1)
    for thread in threads:
        thread.join()
    assert sorted(sums) == [2, 4]
    assert os.waitpid(child, 0)[1] == 0
    assert call("server") == ours


def test_a_server_that_was_killed_is_one_line_and_the_next_call_has_another():
    first = call("server")
    threading.Timer(0.2, os.kill, (first, signal.SIGKILL)).start()
    with pytest.raises(InfraError, match="too little memory"):
        call("never_end")
    assert call("server") != first


def test_without_a_place_for_temporary_files_it_says_so(tmp_path: Path):
    program = """
import os, sys
from pipeline.process.confined import confined
confined("confinement:add", 1, 2, reads=[])
os.rmdir(sys.argv[1])
try:
    confined("confinement:add", 1, 2, reads=[])
except Exception as error:
    print(type(error).__name__, error)
"""
    (tmp_path / "gone").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "gone")],
        env=environment({"TMPDIR": str(tmp_path / "gone")}),
        capture_output=True, text=True, check=True, timeout=HANG_S,
    )  # fmt: skip
    assert done.stdout.startswith("InfraError cannot make a temporary folder: ")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_server_and_child_end_with_the_caller(number: signal.Signals):
    program = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
from pipeline.process.confined import confined
confined("confinement:never_end", reads=[])
"""
    with contextlib.ExitStack() as stack:
        caller = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program], env=environment(), stderr=subprocess.DEVNULL
            )
        )
        stack.callback(caller.kill)
        family: list[psutil.Process] = []

        def is_at_work() -> bool:
            family[:] = psutil.Process(caller.pid).children(recursive=True)
            return len(family) == 2

        assert wait_until(is_at_work)
        caller.send_signal(number)
        assert not psutil.wait_procs(family, timeout=HANG_S)[1]
