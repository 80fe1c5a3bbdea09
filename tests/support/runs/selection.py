"""Which cases of a table `make test` runs; `make long` runs all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def quick_cases(cases: Iterable[tuple[Any, ...]], is_quick: Callable[..., bool]) -> list[Any]:
    """Return one parameter set per case; those that are not quick are marked `slow`.

    Args:
        cases: The values of each case.
        is_quick: Called with these values; tells whether `make test` runs the case.
    """
    return [
        pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow) for case in cases
    ]
