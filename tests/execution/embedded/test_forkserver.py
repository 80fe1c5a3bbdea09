"""Forked workers of an embedded Ray are like started ones, but sooner; Ray can do without."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import HANG_S
from support.runs.cli import environment, left_by, run_python, survivors

from pipeline.execution.embedded import forkserver, forkserver_stub
from pipeline.execution.embedded.forkserver import ForkServer, fork_workers

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only"),
    pytest.mark.early,
]

SAYS = """
import json, os, signal, sys
print(json.dumps({
    "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgid(0), "program": sys.argv,
    "folder": os.getcwd(), "environment": dict(os.environ), "name": __name__,
    "blocked": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
    "waits": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
    "score": open("/proc/self/oom_score_adj").read(),
}), flush=True)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.end()


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "says.py"
    path.write_text(SAYS)
    return path


def ask(name: str, program: Path, *arguments: str, folder: Path | None = None) -> dict[str, Any]:
    """What a program says of the process that a raylet would have been given."""

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        Path(forkserver_stub.OOM_SCORE).write_text("500")

    command = [sys.executable, "-I", "-S", forkserver_stub.__file__, name, str(program), *arguments]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment({"ASKED": "yes"}),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    ) as process:
        output, _ = process.communicate(timeout=HANG_S)
    assert process.returncode == 0
    return {**json.loads(output), "asked by": process.pid}


def test_a_forked_worker_is_what_the_process_would_have_become(
    server: ForkServer, program: Path, tmp_path: Path
):
    forked = ask(server.name, program, "--a=1", "b c", folder=tmp_path)
    started = ask("nobody-listens", program, "--a=1", "b c", folder=tmp_path)
    assert (forked.pop("parent"), started.pop("parent")) == (server.pid, os.getpid())
    assert forked.pop("pid") == forked.pop("group") != forked.pop("asked by")
    assert started.pop("pid") == started.pop("asked by") != started.pop("group")
    assert forked == started
    assert forked["environment"]["ASKED"] == "yes"
    assert (forked["program"], forked["name"]) == ([str(program), "--a=1", "b c"], "__main__")
    assert (forked["blocked"], forked["score"]) == ([int(signal.SIGUSR1)], "500\n")


def test_a_worker_with_an_environment_of_its_own_is_started(server: ForkServer, program: Path):
    alike = ask(server.name, program, "--runtime-env-hash=0")
    answer = ask(server.name, program, "--runtime-env-hash=-12")
    assert alike["pid"] != alike["asked by"]
    assert answer["pid"] == answer["asked by"]


def test_workers_share_no_random_numbers(server: ForkServer, tmp_path: Path):
    program = tmp_path / "draws.py"
    program.write_text(
        "import json, random, uuid, numpy, ray\n"
        "from ray._raylet import ActorClassID, ObjectID, UniqueID\n"
        "drawn = [kind.from_random().hex() for kind in (ActorClassID, UniqueID, ObjectID)]\n"
        "print(json.dumps({'drawn': [*drawn, uuid.uuid4().hex, random.random(),"
        " numpy.random.random()]}))\n"
    )
    drawn = [ask(server.name, program)["drawn"] for _ in range(3)]
    assert all(len(set(values)) == 3 for values in zip(*drawn, strict=True))


OF_NOTHING = """
from pipeline.execution.embedded import forkserver
forkserver._MODULES = ()  # what it imports takes long
"""


def test_a_server_whose_driver_is_gone_ends():
    left, _ = left_by(f"{OF_NOTHING}print(forkserver.ForkServer().pid, flush=True)\ninput()")
    assert survivors([left]) == []


def test_a_system_without_such_sockets_has_no_server(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(forkserver_stub, "address", lambda name: "\0" + 200 * name)
    with fork_workers() as server:
        assert server is None
    assert "workers start one by one" in caplog.text


def test_a_server_ends_where_ray_does_not_start(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(forkserver, "_MODULES", ())
    with pytest.raises(KeyError), fork_workers() as server:  # noqa: PT012
        assert server is not None
        process = psutil.Process(server.pid)
        raise KeyError
    assert not process.is_running()


AHEAD = """
import psutil
from pipeline.execution.embedded.forkserver import fork_workers, started_ahead

def servers():
    return [child.pid for child in psutil.Process().children()]

with started_ahead("10.0.0.1:6379"):
    print(servers())
with started_ahead(None):
    [unused] = servers()
print(servers())
with started_ahead(None):
    [ahead] = servers()
    with fork_workers() as server:
        print(server.pid == ahead)
print(servers() == [ahead])
"""


def test_a_server_that_is_started_ahead_is_used_or_ends():
    done = run_python(OF_NOTHING + AHEAD)
    assert done.stdout.splitlines() == ["[]", "[]", "True", "True"], done.stderr


FORKS = """
import json, os
import psutil
from pipeline.execution.cluster.connect import connect

with connect(None):
    import ray

    @ray.remote
    class Worker:
        def look(self):
            import torch
            return os.getpid(), os.getppid(), torch.get_num_threads(), ray.put(0).hex()

    node = ray._private.worker._global_node
    server = node.all_processes["fork_server"][0].process
    pair = [Worker.options(num_cpus=0).remote() for _ in range(2)]
    forked = ray.get([each.look.remote() for each in pair])
    processes = [psutil.Process(pid) for pid, *_ in forked]
    server.kill()
    server.wait()
    left = psutil.wait_procs(processes, timeout=300)[1]
    later = ray.get(Worker.options(num_cpus=0).remote().look.remote())
    print(json.dumps({
        "server": server.pid, "raylet": node.all_processes["raylet"][0].process.pid,
        "forked": forked, "later": later, "left": len(left),
    }))
"""


@pytest.mark.ray
@pytest.mark.slow
def test_without_its_server_ray_starts_workers_by_itself():
    done = run_python(FORKS)
    assert done.code == 0, done.stderr
    seen = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    pids, parents, threads, puts = zip(*seen["forked"], strict=True)
    assert parents == (seen["server"],) * 2
    assert threads == (1, 1)
    assert len(set(pids)) == len(set(puts)) == 2
    assert seen["later"][1] == seen["raylet"]
    assert seen["left"] == 0
