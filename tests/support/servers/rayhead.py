"""A real Ray head node of its own, as `ray start` makes it, with a job API and a token."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

from support.runs.checkout import PYTHONPATH
from support.servers.ports import free_ports

BIN = Path(sys.executable).parent
START_TIMEOUT_S = 300.0


class RayHead:
    """Starts on entering; on leaving ends the processes that it started, and only those.

    All ports are chosen here: two heads on one machine fight for Ray's default ones.
    """

    def __enter__(self) -> RayHead:
        # Sockets lie in there, and their paths may have 107 characters.
        self._folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
        self._token = secrets.token_hex(32)
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        # A port may be taken between choosing and binding it: start again with others.
        log_path = Path(self._folder, "start.log")
        for _ in range(3):
            gcs, api, agent, *others = free_ports(7)
            self.address = f"127.0.0.1:{gcs}"
            self.url = f"http://127.0.0.1:{api}"
            with log_path.open("wb") as log:
                self._process = psutil.Popen(
                    self._command(gcs, api, agent, others),
                    env=self._environment(),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            if self._wait_for(log_path, api, agent):
                return
            self._stop()
        log_tail = log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"Ray's head node did not start:\n{log_tail}")

    def _command(self, gcs: int, api: int, agent: int, others: list[int]) -> list[str]:
        names = ("dashboard-agent-grpc", "runtime-env-agent", "metrics-export", "ray-client-server")
        return [
            *(str(BIN / "ray"), "start", "--head", "--block", f"--port={gcs}"),
            *("--include-dashboard=true", f"--dashboard-port={api}"),
            f"--dashboard-agent-listen-port={agent}",
            *(f"--{name}-port={port}" for name, port in zip(names, others, strict=True)),
            # Workers take ports that are free then; two heads would give theirs the same ones.
            *("--min-worker-port=0", "--max-worker-port=0"),
            *("--num-cpus=2", f"--object-store-memory={256 << 20}"),
            *("--disable-usage-stats", f"--temp-dir={self._folder}"),
        ]

    def _environment(self) -> dict[str, str]:
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        return {
            **env,
            "PATH": path,
            "PYTHONPATH": PYTHONPATH,
            "RAY_AUTH_MODE": "token",
            **self.secret,
        }

    @property
    def secret(self) -> dict[str, str]:
        """What a user's environment needs for access."""
        return {"RAY_AUTH_TOKEN": self._token}

    def jobs(self) -> list[dict[str, Any]]:
        """What the job API shows: every submitted job, oldest first."""
        headers = {"Authorization": f"Bearer {self._token}"}
        request = urllib.request.Request(f"{self.url}/api/jobs/", headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            submitted = [job for job in json.load(answer) if job["type"] == "SUBMISSION"]
        return sorted(submitted, key=lambda job: job["start_time"])

    def processes(self) -> list[psutil.Process]:
        """All processes of the node."""
        return self._process.children(recursive=True)

    def _wait_for(self, log_path: Path, *ports: int) -> bool:
        # Its ports listen before the raylet has registered; a job then finds no node.
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.is_running():
            if b"Ray runtime started" in log_path.read_bytes() and all(map(_listens, ports)):
                return True
            with contextlib.suppress(psutil.TimeoutExpired):
                self._process.wait(timeout=0.1)
        return False

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _stop(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            ours = [self._process, *self._process.children(recursive=True)]
            # Asked politely, Ray takes 30 s to drain its only node.
            for process in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(ours, timeout=30)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
        return True
    return False
