"""Section `report`: what the page of a run shows besides its figures."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from pipeline.job.section import Section


class Report(Section):
    """What `report.html` shows of the rows."""

    samples: Annotated[int, Field(ge=0, le=24)] = 8
    """How many of the least certain rows it shows, with small pictures (176 px) or the first 280
    characters of texts. The page stays below 1 MiB; 24 at most. 0: none, and nothing of the input
    is on the page."""
