"""Section `metrics`: where the figures of a run go, besides its report."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from pipeline.job.section import Section


class Metrics(Section):
    """Where the figures of a run go while it works, in the formats of Prometheus."""

    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """The driver answers `GET /metrics` on this port, until the run ends."""
    host: str = Field(default="127.0.0.1", min_length=1)
    """The address of `port`; `0.0.0.0` for a Prometheus on another machine. It asks for no
    password."""
    textfile: str | None = None
    """A file, `*.prom`, in the folder of node_exporter's textfile collector; it stays when the run
    has ended. A job each has its own."""

    @field_validator("textfile")
    @classmethod
    def _is_collected(cls, path: str | None) -> str | None:
        if path is not None and (not path.endswith(".prom") or "://" in path):
            raise ValueError("node_exporter reads files on its own disk whose names end in .prom")
        return path
