"""Real storage servers on loopback for tests: started once, stopped for sure, each in a folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import PipelineError
from pipeline.storage.store import Store
from support.servers.ports import free_ports

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.1


class LocalServer(ABC):
    """Runs a server process while the context is open; `folder` is its own."""

    num_ports = 1

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        self.endpoint_url = ""
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def storage_options(self) -> dict[str, Any]:
        """Options for fsspec."""

    @abstractmethod
    def options_at(self, url: str) -> dict[str, Any]:
        """Options for reaching this server through a proxy."""

    @property
    def env(self) -> dict[str, str]:
        """Variables for subprocesses that have no storage options, and for the server itself."""
        return {}

    @abstractmethod
    def uri(self, path: str) -> str:
        """The URI of a folder in the bucket."""

    @abstractmethod
    def command(self, ports: list[int]) -> list[str]:
        """What to run; it listens on ports[0]."""

    @abstractmethod
    def prepare(self) -> None:
        """Make the bucket; raise an OSError or a PipelineError while the server is not ready."""

    def store(self, **options: Any) -> Store:
        """An empty prefix in the bucket."""
        return Store(self.uri(f"test-{uuid.uuid4().hex}"), {**self.storage_options, **options})

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        # A port may be taken between choosing and binding it, and a server may then silently take
        # another: start again with new ports until a put with our credentials succeeds.
        log_path = self.folder / "server.log"
        for _ in range(3):
            ports = free_ports(self.num_ports)
            self.endpoint_url = f"http://127.0.0.1:{ports[0]}"
            with log_path.open("ab") as log:
                self._process = subprocess.Popen(
                    self.command(ports),
                    env={**os.environ, **self.env},
                    cwd=self.folder,
                    stdout=log,
                    stderr=log,
                )
            self._guard = _kill_when_we_die(self._process.pid)
            if self._wait_for_put(self._process):
                return
            self._stop()
        log_tail = log_path.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{type(self).__name__} did not start:\n{log_tail}")

    def _wait_for_put(self, process: subprocess.Popen[bytes]) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(PipelineError, OSError):
                self.prepare()
                Store(self.uri("ready"), self.storage_options).put("x", b"ready")
                return True
            time.sleep(POLL_S)
        return False

    def _stop(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


def _kill_when_we_die(pid: int) -> subprocess.Popen[bytes]:
    """Watch our end of a pipe, so that a killed test run leaves no server behind."""
    return subprocess.Popen(["sh", "-c", f"read _; kill -9 {pid}"], stdin=subprocess.PIPE)
