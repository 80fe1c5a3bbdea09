"""Select the cases of a table or property that `make test` runs; `make long` runs all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from hypothesis import settings


def quick_cases(cases: Iterable[tuple[Any, ...]], is_quick: Callable[..., bool]) -> list[Any]:
    """Return one parameter set per case; those that are not quick are marked `slow`.

    Args:
        cases: The values of each case.
        is_quick: Called with these values; tells whether `make test` runs the case.
    """
    return [
        pytest.param(*case, marks=() if is_quick(*case) else pytest.mark.slow) for case in cases
    ]


def examples(most: int) -> settings:
    """Have so many examples of a property in `make long`, a quarter of them in `make test`."""
    is_long = settings.get_current_profile_name() == "others"
    return settings(max_examples=most if is_long else most // 4)
