"""Where things lie in this checkout."""

from __future__ import annotations

import os
from pathlib import Path

SUPPORT = Path(__file__).parent
"""The modules that tests share."""
TESTS = SUPPORT.parent
ROOT = TESTS.parent
PYTHONPATH = os.pathsep.join([str(SUPPORT), str(ROOT)])
"""Of every process that a test starts: what tests share, and the package of this checkout."""
