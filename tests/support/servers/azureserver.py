"""An Azure Blob server for tests: azurite on loopback, in memory, installed by npm into .venv."""

from __future__ import annotations

import base64
import fcntl
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.servers.localserver import LocalServer

AZURITE = "azurite@^3.35.0"
INSTALL_TIMEOUT_S = 240.0


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
