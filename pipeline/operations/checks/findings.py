"""What `pipeline doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FindingStatus = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one look gave."""

    check: str
    status: FindingStatus
    found: str
    """What there is; if it is not right, what would be."""
    exit_code: int = 0
