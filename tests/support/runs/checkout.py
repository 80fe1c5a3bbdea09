"""Paths of this checkout."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).parents[1]
"""What tests share."""
TOYS = SUPPORT / "toys"
"""What stands for a user's own modules."""
TESTS = SUPPORT.parent
ROOT = TESTS.parent
PYTHONPATH = os.pathsep.join([str(TOYS), str(TESTS), str(ROOT)])
"""Of every process that a test starts: what tests share, and the package of this checkout."""
