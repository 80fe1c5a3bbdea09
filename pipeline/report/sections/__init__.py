"""The sections of a report: each file has their fields, computes them and shows them.

In: what the recorder has counted. Out: sections of report.json, and their blocks for people. Begin
with `outcome.py`. A further figure is a field of a section here, and a line in the function that
makes its block.
"""

from __future__ import annotations

import math
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A part of report.json: frozen, closed, and without NaN; what is not known is null."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_or_null(cls, values: Any) -> Any:
        # JSON has no NaN and no Infinity.
        if not isinstance(values, dict):
            return values
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }

    def but(self, **changes: Any) -> Self:
        """Return this section with other values of some fields, validated like the first ones."""
        return type(self)(**{**dict(self), **changes})


def ratio(amount: float | None, of: float | None) -> float | None:
    """Return amount / of; None if either is unknown, or there is no such number."""
    if amount is None or not of:
        return None
    return amount / of if math.isfinite(amount / of) else None
